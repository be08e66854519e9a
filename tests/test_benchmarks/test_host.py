import os

import pytest
import torch
from torch_versions import since

from benchmarks import host, report
from mmlska.analysis import timing
from mmlska.ops import depthwise_cascade, trial, use_backend

pytest.importorskip('triton')


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@since('2.7', 'it takes no kernels in Triton, which are timed beside the others')
def test_both_modes_are_timed_and_everything_is_put_back(monkeypatch):
    monkeypatch.setattr(timing, 'LEAST_SECONDS', 0.0)
    before = dict(os.environ), dict(trial._outcomes)
    rows = host.measure(rounds=2)
    assert [row.mode for row in rows] == ['forward', 'train'] == list(host.GOALS)
    for row in rows:
        assert list(row.microseconds) == [host.PLAIN, host.CHOSEN, host.OURS]
        assert all(time > 0 for time in row.microseconds.values())
        assert row.ratio.lower <= row.ratio.median <= row.ratio.upper
    assert (dict(os.environ), dict(trial._outcomes)) == before


@pytest.mark.parametrize('training', [False, True])
def test_all_variants_compute_the_cascade_but_for_what_is_not_launched(training):
    calls = host.calls(training)
    expected = calls[host.PLAIN]()
    # One position: each kernel contributes its tap in the middle, then its bias.
    assert expected[0].item() == 5
    for name in (host.CHOSEN, host.OURS):
        found = calls[name]()
        assert len(found) == len(expected) == (10 if training else 1)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_inside_no_kernel_runs():
    from mmlska.ops.depthwise_cascade import triton_kernels

    known = {name for name in vars(triton_kernels) if name.endswith('_kernel')}
    assert len(known) >= 2
    with host.without_launches():
        assert all(type(getattr(triton_kernels, name)) is host.NoLaunch for name in known)
        with use_backend('triton'):
            out = depthwise_cascade(torch.ones(1, 1, 2, 3), [torch.ones(1, 1, 1, 3)], [None], [1])
        assert out.shape == (1, 1, 2, 3)


def test_the_table_has_times_ratio_and_goal():
    times = {host.PLAIN: 10.0, host.CHOSEN: 12.0, host.OURS: 20.0}
    row = host.Row('forward', times, timing.Spread(1.5, 2.0, 2.5))
    *_, line = host.table([row]).splitlines()
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells == ['forward', '10', '12', '20', '**2.00** [1.50, 2.50]', '1.3']
    assert report.number(times[host.PLAIN]) == cells[1]
