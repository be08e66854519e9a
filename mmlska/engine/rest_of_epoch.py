"""Going on in the middle of an epoch, or of a training without epochs."""

import itertools
from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader


class RestOfSampler:
    """The batches of a sampler after the first ones; its length stays that of the epoch."""

    def __init__(self, batches: BatchSampler, done: int) -> None:
        self.batches = batches
        self.done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batches), self.done, None)

    def __len__(self) -> int:
        return len(self.batches)


def begin_in_epoch(loop: EpochBasedTrainLoop, done: int) -> None:
    """Let a loop leave out the first batches of the next epoch; none of them is loaded.

    mmengine repeats an interrupted epoch from its start, and counts the repeated iterations twice.

    Args:
        loop: The loop, before an epoch.
        done: How many batches.
    """
    loader, run_iter = loop.dataloader, loop.run_iter
    workers = dict(prefetch_factor=loader.prefetch_factor) if loader.num_workers else {}
    loop.dataloader = DataLoader(
        loader.dataset,
        batch_sampler=RestOfSampler(loader.batch_sampler, done),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        **workers,
    )
    loop.run_iter = lambda index, batch: run_iter(index + done, batch)
    loop.loader_of_whole_epochs = loader


def begin_at_start(loop: EpochBasedTrainLoop) -> None:
    """Undo :func:`begin_in_epoch`."""
    if 'loader_of_whole_epochs' in vars(loop):
        loop.dataloader = vars(loop).pop('loader_of_whole_epochs')
        del loop.run_iter


class RestOfStream:
    """The batches of a loader without end, of which the first ones are None instead of loaded.

    The loader is started with the first batch that is loaded.

    Args:
        loader: A loader over an :class:`InfiniteSampler`.
        done: How many batches are left out.
    """

    def __init__(self, loader: DataLoader, done: int) -> None:
        trained = done * loader.batch_sampler.batch_size
        samples = loader.sampler._indices_of_rank()
        loader.sampler.indices = itertools.islice(samples, trained, None)
        # Else persistent workers that were started before would stay.
        loader._iterator = None
        self.loader = loader
        self.done = done
        self.batches: Iterator | None = None

    def __next__(self) -> Any:
        if self.done:
            self.done -= 1
            return None
        if self.batches is None:
            self.batches = iter(self.loader)
        return next(self.batches)


def begin_in_stream(loop: IterBasedTrainLoop) -> bool:
    """Let a loop without epochs leave out the batches that it has trained; none of them is loaded.

    mmengine does so by itself where its sampler has ``skip``. Up to 0.10.7 none has, its workers
    start before any hook is asked, and it loads and drops those batches, which draws random
    numbers.

    Args:
        loop: The loop, before it is run.

    Returns:
        Whether they are left out: another sampler than mmengine's ``InfiniteSampler`` is left to
        mmengine.
    """
    sampler = loop.dataloader.sampler
    if hasattr(sampler, 'skip'):
        return True
    skips_by_itself = hasattr(loop.dataloader_iterator, 'skip_iter')
    if skips_by_itself or not isinstance(sampler, InfiniteSampler):
        return False
    loop.dataloader_iterator = RestOfStream(loop.dataloader, loop.iter)
    return True
