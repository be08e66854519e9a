"""Random augmentation in worker processes that depends on the batch, not on what came before it.

The generators of a worker cannot be read from outside, and their state depends on all batches that
it has loaded. Seeded anew for each batch by its number in the training, they give a resumed run the
augmentations of an uninterrupted one. Without workers, augmentation draws from the random state of
the training, which is saved.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info


class SeededBatches:
    """A ``collate_fn`` that gives the worker which calls it the seed of its next batch.

    Args:
        collate: The ``collate_fn`` of the loader.
        seed: Seed of the training.
        rank: Rank of the process.
    """

    def __init__(self, collate: Callable, seed: int, rank: int) -> None:
        self.collate = collate
        self.seed = seed
        self.rank = rank
        self.first = 0
        self.batches: int | None = None
        self.done = 0

    def begin_at(self, first: int, batches: int | None) -> None:
        """Say what workers that start from now on will load.

        Args:
            first: Number of the first batch in the training.
            batches: How many batches one pass over the data has, None if it never ends.
        """
        self.first = first
        self.batches = batches

    def __call__(self, samples: Sequence) -> Any:
        """Collate the samples of a batch."""
        batch = self.collate(samples)
        if get_worker_info() is not None:
            self.done += 1
            self.set_seed()
        return batch

    def set_seed(self) -> None:
        """Seed the generators of a worker for the batch that it loads next."""
        sequence = np.random.SeedSequence([self.seed, self.rank, self.next_batch()])
        first, second, third = map(int, sequence.generate_state(3))
        random.seed(first)
        np.random.seed(second)
        torch.manual_seed(third)

    def next_batch(self) -> int:
        """Number of that batch: the workers take turns, and each pass begins with the first."""
        worker = get_worker_info()
        if self.batches is None:
            passes, turn = 0, self.done
        else:
            turns = len(range(worker.id, self.batches, worker.num_workers))
            passes, turn = divmod(self.done, max(turns, 1))
        in_pass = worker.id + turn * worker.num_workers
        return self.first + passes * (self.batches or 0) + in_pass


def seed_batches(loader: DataLoader, seed: int, rank: int) -> SeededBatches:
    """Let a loader seed its workers for each batch.

    Args:
        loader: A loader whose workers have not been started.
        seed: Seed of the training.
        rank: Rank of the process.
    """
    batches = SeededBatches(loader.collate_fn, seed, rank)
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn, batches)
    loader.collate_fn = batches
    return batches


def _start_worker(
    initialize: Callable[[int], None] | None, batches: SeededBatches, worker_id: int
) -> None:
    if initialize is not None:
        initialize(worker_id)
    batches.set_seed()
