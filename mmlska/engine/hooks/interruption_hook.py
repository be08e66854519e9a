"""Signals that save before they end a training, and processes that leave nothing behind."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmlska.registry import HOOKS

from ..distributed import Agreement, end_process_group_at_exit, log_uncaught_errors
from ..processes import follow_launcher, guard_workers
from .safe_checkpoint_hook import SafeCheckpointHook

# EX_TEMPFAIL of sysexits.h: the same command, with --resume, goes on.
EXIT_SAVED = 75
# What a shell reports of a process that Ctrl-C has ended.
EXIT_INTERRUPTED = 130
# Windows has no SIGHUP.
SAVING_SIGNALS = tuple(name for name in ('SIGTERM', 'SIGHUP') if name in signal.Signals.__members__)


@HOOKS.register_module()
class InterruptionHook(Hook):
    """End a training by a signal without losing what it has learned.

    On one of the ``signals``, and on Ctrl-C, the iteration is finished, a checkpoint is saved, and
    all processes of the job end: with exit status 75 after a signal, 130 after Ctrl-C. A second
    Ctrl-C stops at once. It needs :class:`SafeCheckpointHook`.

    Besides, in training, validation and test: processes of torchrun end with their agent, workers
    of data loaders with their process and not by the signals of the job; the process group is ended
    at exit; an uncaught error reaches the log with the rank of the process.

    Args:
        signals: Names of the signals that mean to save and end, SIGTERM and SIGHUP by default. One
            that is ignored, as SIGHUP is below ``nohup``, stays ignored.

    Raises:
        ValueError: If a name is not that of a signal.
    """

    # After all that happens in an iteration, saving at an interval included.
    priority = 'LOWEST'

    def __init__(self, signals: tuple[str, ...] = SAVING_SIGNALS) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f'signals={tuple(signals)}: {", ".join(unknown)} is no signal here')
        self.signals = [signal.Signals[name] for name in signals]
        self.received = 0
        self._handlers: dict[signal.Signals, Any] = {}
        self._agreement: Agreement | None = None
        self._checkpoint_hook: SafeCheckpointHook | None = None
        self._shared_batches = 0

    def before_run(self, runner: Runner) -> None:
        """See to it that the process leaves nothing behind."""
        follow_launcher()
        end_process_group_at_exit()
        log_uncaught_errors()

    def before_train(self, runner: Runner) -> None:
        """Listen to the signals."""
        guard_workers(runner.train_dataloader)
        hooks = [hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)]
        if not hooks:
            runner.logger.warning(
                'mmlska.InterruptionHook saves by mmlska.SafeCheckpointHook, which this run does '
                'not have: a signal ends it unsaved'
            )
            return
        self._checkpoint_hook = hooks[0]
        self._agreement = Agreement()
        self.received = 0
        # Python lets no other thread listen.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *self.signals):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGINT and is_main_process():
            # What Python buffers may be in use where the signal has come.
            os.write(2, b'\nCtrl-C: the iteration is finished and saved; once more stops at once\n')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and end, if one of the processes got a signal."""
        self._end_if_asked(runner, after_iter=True)

    def before_val(self, runner: Runner) -> None:
        """Guard the workers of the validation too."""
        guard_workers(runner.val_dataloader)
        if self._agreement is not None:
            self._shared_batches = -self._agreement.highest(-batches_of(runner.val_dataloader))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """The same after a batch, as long as all processes have one: they ask at the same time."""
        if batch_idx < self._shared_batches:
            self._end_if_asked(runner, after_iter=False)

    def before_test(self, runner: Runner) -> None:
        """Guard the workers of the test too."""
        guard_workers(runner.test_dataloader)

    def after_train(self, runner: Runner) -> None:
        """Listen no longer."""
        self._agreement = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _end_if_asked(self, runner: Runner, after_iter: bool) -> None:
        """Save and end.

        Raises:
            SystemExit: If a signal has come.
        """
        number = self._agreement.highest(self.received) if self._agreement is not None else 0
        if not number:
            return
        path = self._checkpoint_hook.save_now(runner, after_iter)
        runner.logger.warning(
            f'{signal.Signals(number).name}: training ends; '
            f'{"--resume goes on from " + path if path else "it has saved nothing"}'
        )
        self.after_train(runner)
        raise SystemExit(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_SAVED)


def batches_of(loader: DataLoader) -> int:
    """Length of a loader, 0 if it has none."""
    return len(loader) if hasattr(loader.dataset, '__len__') else 0
