"""Checkpoints that survive an interruption, and a training that goes on from them exactly."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_dist_info, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, Runner

from mmlska.registry import HOOKS

from ..bare_model import bare_model
from ..batch_seeds import SeededBatches, seed_batches
from ..full_disk import keep_logging
from ..random_state import random_state, set_random_state
from ..rest_of_epoch import begin_at_start, begin_in_epoch, begin_in_stream
from ..resuming import check_same_model, check_same_optimizer
from ..saved_checkpoints import (
    PARTIAL,
    choose_checkpoint,
    fault,
    move_into_place,
    partial_name,
    remove,
    saved_checkpoints,
)

# EX_IOERR of sysexits.h.
EXIT_WRITE_ERROR = 74
ON_WRITE_ERROR = ('continue', 'stop')


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; what was there before is untouched."""


class LateRemoval:
    """A local file backend that removes what it was asked to only when it is told."""

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend
        self.pending: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Remember a file or folder."""
        self.pending.append(path)

    rmtree = remove

    def carry_out(self, written: str) -> None:
        """Remove what was remembered, but for the file that was written meanwhile."""
        for path in self.pending:
            if os.path.abspath(path) != os.path.abspath(written):
                remove(path)
        self.pending.clear()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` whose files are whole, and hold all that a resumed run needs.

    It takes the options of ``CheckpointHook``, and serves every runner of mmengine, also under the
    scripts of MMDetection and MMSegmentation:
    ``default_hooks=dict(checkpoint=dict(type='mmlska.SafeCheckpointHook', ...))``.

    - A file is written under another name, flushed to the disk, compared with its checksums and
      renamed; only then older ones are removed, and ``last_checkpoint`` is written.
    - ``--resume`` without a file goes on from the newest whole checkpoint and says what is lost.
    - The random state of every process and the place in the epoch are saved and restored, and an
      evaluation leaves the random state as it was: the resumed run equals an uninterrupted one.

    Storage other than local disks is left to ``CheckpointHook``.

    Args:
        on_write_error: What a full disk means: ``'continue'`` trains on with the last checkpoint
            kept and tries again an interval later, ``'stop'`` ends the run with exit status 74.
        **options: Those of ``CheckpointHook``.

    Raises:
        ValueError: If ``on_write_error`` is neither.
    """

    def __init__(self, *, on_write_error: str = 'continue', **options: Any) -> None:
        if on_write_error not in ON_WRITE_ERROR:
            raise ValueError(f'on_write_error is one of {ON_WRITE_ERROR}, got {on_write_error!r}')
        super().__init__(**options)
        self.on_write_error = on_write_error
        self._resumed: dict[str, Any] = {}
        self._random_states: list[dict] = []
        self._progress: dict[str, int] = {}
        self._state_before_val: dict | None = None
        self._batches_of_epoch = 0
        self._batches: SeededBatches | None = None

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint that ``--resume`` without a file means.

        ``FlexibleRunner`` has followed ``last_checkpoint`` by then.
        """
        if not runner._resume or runner._load_from is not None or runner._has_loaded:
            return
        choice = [None]
        if is_main_process():
            choice = [self._choose(runner)]
        broadcast_object_list(choice)
        # Without a checkpoint mmengine would look for one once more.
        runner._resume = choice[0] is not None
        runner._load_from = choice[0] or runner.cfg.get('start_from')

    def _choose(self, runner: Runner) -> str | None:
        folders = self._folders(runner)
        path, refused = choose_checkpoint(folders, self.filename_tmpl)
        lost = '; '.join(f'{bad} {problem}' for bad, problem in refused)
        if path is None:
            runner.logger.warning(
                f'nothing to resume in {folders[0]}: training starts from '
                f'{runner.cfg.get("start_from") or "the beginning"}'
                + (f'. No checkpoint is whole: {lost}' if lost else '')
            )
            return None
        if lost:
            runner.logger.warning(
                f'{lost}. Training goes on from {path.name}; what was trained after it is lost '
                'and trained again'
            )
        return str(path)

    def _folders(self, runner: Runner) -> list[str]:
        folders = [runner.work_dir]
        if self.out_dir is not None and self.out_dir != runner.work_dir:
            name = os.path.basename(runner.work_dir.rstrip(os.sep))
            folders.append(os.path.join(self.out_dir, name))
        return folders

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what mmengine does not restore.

        Raises:
            ValueError: If a training should go on from a file that holds weights only, or is of
                another model or optimizer.
        """
        if not runner._resume:
            return
        meta = checkpoint.get('meta')
        has_place = isinstance(meta, dict) and {'epoch', 'iter'} <= meta.keys()
        if not has_place or 'message_hub' not in checkpoint:
            raise ValueError(
                f'--resume {runner._load_from}: the file holds weights'
                f'{" and lacks its message_hub" if has_place else " only"}, not the state of a '
                'training. To start from its weights, leave --resume out and add --cfg-options '
                f'load_from={runner._load_from}'
            )
        if not isinstance(runner, FlexibleRunner):
            # What a strategy has divided among processes has other shapes.
            self._check_same(runner, checkpoint)
        if 'optimizer' not in checkpoint:
            runner.logger.warning(
                f'{runner._load_from} holds no state of the optimizer, which starts anew'
            )
        self._resumed = dict(
            random_states=checkpoint.get('random_states'),
            batches_of_epoch=meta.get('batches_of_epoch', (0, 0)),
        )

    def _check_same(self, runner: Runner, checkpoint: dict) -> None:
        path = runner._load_from
        check_same_model(bare_model(runner), checkpoint.get('state_dict', {}), path)
        if 'optimizer' in checkpoint:
            check_same_optimizer(runner.optim_wrapper, checkpoint['optimizer'], path)

    def before_train(self, runner: Runner) -> None:
        """Make saving safe, and restore the random state."""
        folders = self._folders(runner)
        super().before_train(runner)
        if runner.iter == 0 and is_main_process():
            self._warn_of_overwriting(runner, folders)
        if isinstance(getattr(self.file_backend, 'client', self.file_backend), LocalBackend):
            self.file_backend = LateRemoval(self.file_backend)
            self._clean_up()
            keep_logging(runner.visualizer)
        self._take_best_along()
        loader = runner.train_dataloader
        if loader.generator is None:
            # Else the start of each pass over the data draws from the state of the training.
            loader.generator = torch.Generator().manual_seed(runner.seed)
        self._batches = seed_batches(loader, runner.seed, get_dist_info()[0])
        self._restore_random_state(runner)

    def _warn_of_overwriting(self, runner: Runner, folders: list[str]) -> None:
        saved = saved_checkpoints(folders, self.filename_tmpl)
        whole = next((path for _, path in saved if not fault(path)), None)
        if whole is not None:
            runner.logger.warning(
                f'training starts from the beginning, and {whole} is there: files of the same '
                'names will be overwritten. To go on from it, stop and add --resume'
            )

    def _clean_up(self) -> None:
        """Remove what a run that was killed while it saved has left."""
        if is_main_process() and os.path.isdir(self.out_dir):
            for entry in os.scandir(self.out_dir):
                if entry.name.startswith('.') and entry.name.endswith(PARTIAL):
                    remove(entry.path)

    def _take_best_along(self) -> None:
        """Look for the best checkpoints beside the others: a copied run keeps the originals."""
        if not self.save_best:
            return
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = self._beside(self.best_ckpt_path)
        for key, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[key] = path and self._beside(path)

    def _beside(self, path: str) -> str:
        return self.file_backend.join_path(self.out_dir, os.path.basename(path))

    def _restore_random_state(self, runner: Runner) -> None:
        states = self._resumed.pop('random_states', None)
        if states is None:
            return
        rank, processes = get_dist_info()
        if len(states) != processes:
            runner.logger.warning(
                f'the checkpoint holds the random state of {len(states)} processes, now there are '
                f'{processes}: their random numbers start anew'
            )
            return
        try:
            set_random_state(states[rank])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            runner.logger.warning(
                f'the random state of the checkpoint cannot be read ({error!r}): random numbers '
                'start anew'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Leave out the batches of this epoch that were trained before the interruption."""
        loop = runner.train_loop
        done, whole = self._resumed.pop('batches_of_epoch', (0, 0))
        batches = len(loop.dataloader)
        if whole not in (0, batches):
            runner.logger.warning(
                f'an epoch had {whole} batches and has {batches} now: it goes on after the same '
                'share of them'
            )
            done = done * batches // whole
        self._batches_of_epoch = done
        if not isinstance(loop, EpochBasedTrainLoop):
            skips = begin_in_stream(loop)
            # What cannot skip loads all batches once more.
            self._batches.begin_at(loop.iter if skips else 0, None if skips else batches)
            return
        self._batches.begin_at(loop.iter, batches - done)
        if done:
            begin_in_epoch(loop, done)
            runner.logger.info(f'the first {done} batches of the epoch are trained already')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save if it is time to."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._batches_of_epoch = batch_idx + 1
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save if it is time to."""
        self._batches_of_epoch = 0
        begin_at_start(runner.train_loop)
        super().after_train_epoch(runner)

    def before_val(self, runner: Runner) -> None:
        """Remember the random state of the training."""
        self._state_before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Go on with it."""
        set_random_state(self._state_before_val)
        self._state_before_val = None

    def save_now(self, runner: Runner, after_iter: bool) -> str | None:
        """Save between two intervals; returns the path of the last file that this run has saved.

        Args:
            runner: The runner of the training.
            after_iter: Whether an iteration is trained that ``runner.iter`` does not count yet.
        """
        meta = dict(epoch=runner.epoch, iter=runner.iter + int(after_iter))
        step = meta['iter']
        if self.by_epoch:
            in_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
            middle = self._batches_of_epoch > 0 or not in_epochs
            step = f'{meta["epoch"]}_iter_{step}' if middle else meta['epoch']
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        if path != self.last_ckpt:
            self._save_checkpoint_with_step(runner, step, meta)
        return self.last_ckpt

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what a resumed run needs to equal this one."""
        checkpoint['random_states'] = self._random_states
        # FlexibleRunner counts as at the end of an epoch, whatever it was told.
        checkpoint['meta'].update(self._progress)
        done, whole = self._batches_of_epoch, len(runner.train_dataloader)
        checkpoint['meta']['batches_of_epoch'] = (done, whole if done else 0)

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict) -> None:
        self._progress = dict(meta)
        with self._or_as_before(runner):
            super()._save_checkpoint_with_step(runner, step, meta)
        self._progress = {}

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._or_as_before(runner):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _or_as_before(self, runner: Runner) -> Iterator[None]:
        """Save, or keep on record what was saved before, if the disk does not take more.

        Raises:
            SystemExit: If the run should stop then.
        """
        self._random_states = all_gather_object(self._state_before_val or random_state())
        if not isinstance(self.file_backend, LateRemoval):
            yield
            return
        information = runner.message_hub.runtime_info
        before, own = dict(information), self._record()
        try:
            with self._whole_files(runner):
                yield
        except CheckpointWriteError as error:
            information.clear()
            information.update(before)
            vars(self).update(own)
            self.file_backend.pending.clear()
            self._go_on_or_stop(runner, error)
        except OSError as error:
            runner.logger.warning(f'last_checkpoint could not be written: {error}')

    @contextmanager
    def _whole_files(self, runner: Runner) -> Iterator[None]:
        """Let ``CheckpointHook``, which saves by a method of the runner, save by ours."""
        if 'save_checkpoint' in vars(runner):
            # The best checkpoint is being saved, and the last one together with it.
            yield
            return
        runner.save_checkpoint = partial(self._save_whole, runner.save_checkpoint)
        try:
            yield
        finally:
            del runner.save_checkpoint

    def _go_on_or_stop(self, runner: Runner, error: CheckpointWriteError) -> None:
        kept = f'{self.last_ckpt} is kept' if self.last_ckpt else 'this run has saved none before'
        if self.on_write_error == 'stop':
            runner.logger.warning(f'{error}; {kept}. Training stops')
            raise SystemExit(EXIT_WRITE_ERROR) from error
        runner.logger.warning(f'{error}; {kept}. Training goes on, and tries again next time')

    def _record(self) -> dict[str, Any]:
        """What this object remembers of saved files."""
        names = ('keep_ckpt_ids', 'last_ckpt', 'best_ckpt_path', 'best_ckpt_path_dict')
        record = {name: getattr(self, name) for name in names if hasattr(self, name)}
        copied = {k: v.copy() for k, v in record.items() if isinstance(v, (deque, dict))}
        return {**record, **copied}

    def _save_whole(
        self, save: Callable, out_dir: str, filename: str, *args: Any, **options: Any
    ) -> None:
        """Save under another name, check, rename, and remove what is to be removed.

        Raises:
            CheckpointWriteError: In all processes, if one of them could not write.
        """
        written = os.path.join(out_dir, partial_name(filename))
        final = os.path.join(out_dir, filename)
        write = partial(save, out_dir, partial_name(filename), *args, **options)
        # Of sharded training every process writes a part.
        problems = [problem for problem in all_gather_object(_problem_of(write)) if problem]
        if not problems and is_main_process():
            problems = [_problem_of(partial(move_into_place, written, final))]
        problem = [problems[0] if problems else '']
        broadcast_object_list(problem)
        if problem[0]:
            if is_main_process():
                remove(written)
            raise CheckpointWriteError(f'{final} could not be saved: {problem[0]}')
        if is_main_process():
            self.file_backend.carry_out(final)


def _problem_of(step: Callable[[], None]) -> str:
    """What the disk had against a step of saving, empty if nothing."""
    try:
        step()
    except OSError as error:
        return str(error)
    return ''
