"""Going on in the middle of an epoch."""

import itertools
from collections.abc import Iterator
from typing import Any

from mmengine.runner import EpochBasedTrainLoop
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
