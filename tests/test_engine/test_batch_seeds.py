import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmlska.engine.batch_seeds import seed_batches

SAMPLES = 10
BATCH = 2
BATCHES = SAMPLES // BATCH


class Noise(Dataset):
    """A number of each generator that augmentation may use."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])


def passes(number: int, first: int = 0, rank: int = 0, **options) -> torch.Tensor:
    """Batches of some passes over the data."""
    loader = DataLoader(Noise(), BATCH, **options)
    seed_batches(loader, seed=1, rank=rank).begin_at(first, BATCHES)
    return torch.stack([batch for _ in range(number) for batch in loader])


@pytest.mark.parametrize('workers', [2, 3])
def test_a_later_start_draws_what_an_earlier_one_draws_there(workers):
    options = dict(num_workers=workers, persistent_workers=True)
    whole = passes(3, **options)
    assert torch.equal(passes(2, first=BATCHES, **options), whole[BATCHES:])
    assert len(whole.flatten().unique()) == whole.numel()


def test_the_number_of_workers_makes_no_difference():
    assert torch.equal(passes(1, num_workers=1), passes(1, num_workers=3))


def test_each_rank_draws_its_own():
    assert not torch.isin(passes(1, rank=1, num_workers=1), passes(1, num_workers=1)).any()


def test_a_start_of_its_own_for_the_workers_is_kept():
    called = torch.zeros(1).share_memory_()
    passes(1, num_workers=1, worker_init_fn=lambda worker: called.add_(1))
    assert called.item() == 1


def test_without_workers_the_state_of_the_training_decides():
    torch.manual_seed(3)
    first = passes(1)
    torch.manual_seed(4)
    assert not torch.equal(passes(1)[..., 2], first[..., 2])
    torch.manual_seed(3)
    assert torch.equal(passes(1)[..., 2], first[..., 2])
