import os
import signal
from pathlib import Path

import pytest
from mmengine.hooks import CheckpointHook
from toy_training import BATCHES, Call, ToyRunner, toy_runner

from mmlska.engine import InterruptionHook


def send(number: signal.Signals):
    return lambda: os.kill(os.getpid(), number)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.fixture(autouse=True)
def handlers():
    """Every test leaves the handlers as they were, whatever ends it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    # Under nohup it is ignored, and stays so.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield {**before, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_a_signal_finishes_the_iteration_saves_and_ends(tmp_path, number, status, handlers):
    runner = toy_runner(tmp_path, hooks=[Call(2, send(number))])
    with pytest.raises(SystemExit) as ended:
        runner.train()
    assert ended.value.code == status
    assert files(tmp_path) == ['epoch_0_iter_3.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_0_iter_3.pth')
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_what_an_interval_has_just_saved_is_not_saved_again(tmp_path):
    runner = toy_runner(tmp_path, by_epoch=False, length=8, hooks=[Call(3, send(signal.SIGTERM))])
    with pytest.raises(SystemExit):
        runner.train()
    assert files(tmp_path) == ['iter_4.pth']


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        toy_runner(tmp_path, hooks=[Call(2, twice)]).train()
    assert files(tmp_path) == []


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path):
    class InEvaluation(Call):
        batches = 0

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.batches += 1
            if batch_idx == 1:
                self.action()

    hook = InEvaluation(-1, send(signal.SIGTERM))
    with pytest.raises(SystemExit):
        toy_runner(tmp_path, hooks=[hook]).train()
    assert hook.batches == 2 and files(tmp_path) == ['epoch_1.pth']


def test_the_checkpoint_of_an_interruption_counts_among_those_that_are_kept(tmp_path):
    options = dict(max_keep_ckpts=1)
    with pytest.raises(SystemExit):
        toy_runner(
            tmp_path, hooks=[Call(BATCHES + 1, send(signal.SIGTERM))], checkpoint=options
        ).train()
    assert files(tmp_path) == [f'epoch_1_iter_{BATCHES + 2}.pth']
    toy_runner(tmp_path, checkpoint=options, resume=True).train()
    assert files(tmp_path) == ['epoch_3.pth']


def test_without_a_signal_nothing_is_left_of_it(tmp_path, handlers):
    toy_runner(tmp_path, length=1).train()
    assert files(tmp_path) == ['epoch_1.pth']
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_an_ignored_signal_stays_ignored(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    toy_runner(tmp_path, length=1, hooks=[Call(2, send(signal.SIGHUP))]).train()
    assert files(tmp_path) == ['epoch_1.pth']


def test_other_signals_by_option(tmp_path):
    runner = toy_runner(tmp_path, hooks=[Call(2, send(signal.SIGUSR1))])
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, InterruptionHook))
    hook.signals = InterruptionHook(signals=('SIGUSR1',)).signals
    with pytest.raises(SystemExit):
        runner.train()
    assert files(tmp_path) == ['epoch_0_iter_3.pth']


def test_an_unknown_signal_is_named():
    with pytest.raises(ValueError, match='SIGNONE is no signal'):
        InterruptionHook(signals=('SIGTERM', 'SIGNONE'))


def test_without_its_checkpoint_hook_it_says_so_and_lets_signals_be(tmp_path, handlers):
    runner = toy_runner(tmp_path, length=1)
    runner._hooks = [
        CheckpointHook() if isinstance(hook, CheckpointHook) else hook for hook in runner.hooks
    ]
    seen = []
    runner.register_hook(Call(1, lambda: seen.append(signal.getsignal(signal.SIGTERM))))
    runner.train()
    assert seen == [handlers[signal.SIGTERM]]
    assert isinstance(runner, ToyRunner) and runner.epoch == 1
