"""What is loaded when a training without epochs goes on."""

import itertools
from types import SimpleNamespace

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader

from mmlska.engine.rest_of_epoch import RestOfStream, begin_in_stream


class Numbers:
    """A data set that remembers what was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.read.append(index)
        return index


def loader(sampler=InfiniteSampler):
    numbers = Numbers()
    return DataLoader(numbers, batch_size=4, sampler=sampler(numbers, seed=1))


@pytest.mark.parametrize('done', [0, 1, 7])
def test_the_rest_is_that_of_an_uninterrupted_stream_and_nothing_else_is_read(done):
    whole = [batch.tolist() for batch in itertools.islice(loader(), 10)]
    resumed = loader()
    iter(resumed)
    rest = RestOfStream(resumed, done)
    assert [next(rest) for _ in range(done)] == [None] * done
    assert [next(rest).tolist() for _ in range(10 - done)] == whole[done:]
    assert resumed.dataset.read == [*itertools.chain.from_iterable(whole[done:])]


def test_a_loop_that_skips_by_itself_and_other_samplers_are_left_alone():
    eager, skipping = object(), SimpleNamespace(skip_iter=None)
    for batches, iterator in [(loader(DefaultSampler), eager), (loader(), skipping)]:
        loop = SimpleNamespace(dataloader=batches, dataloader_iterator=iterator, iter=3)
        assert begin_in_stream(loop) == hasattr(batches.sampler, 'skip')
        assert loop.dataloader_iterator is iterator


def test_a_loop_that_loads_what_it_skips_gets_the_rest(monkeypatch):
    monkeypatch.delattr(InfiniteSampler, 'skip', raising=False)
    loop = SimpleNamespace(dataloader=loader(), dataloader_iterator=object(), iter=3)
    assert begin_in_stream(loop)
    assert [next(loop.dataloader_iterator) for _ in range(3)] == [None] * 3
    assert not loop.dataloader.dataset.read
