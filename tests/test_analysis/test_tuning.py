"""Laws of the threshold, and a dry run of every curve on tiny maps."""

import functools
import io
from types import SimpleNamespace

import pytest
import torch
from torch_versions import since

from mmlska.__main__ import main
from mmlska.analysis import timing, tuning
from mmlska.analysis.timing import Sample
from mmlska.analysis.tuning import Curve, Gains
from mmlska.ops import measured, tuned
from mmlska.ops.depthwise_cascade import onednn

CPU = torch.device('cpu')
CASE = tuned.Case('depthwise_cascade', True, '', 'float32')
TINY = (2**7, 2**8)


@pytest.fixture(autouse=True)
def same_process(monkeypatch):
    """Neither the threads nor the allocator of this process change."""
    monkeypatch.setattr(timing, 'set_allocator', lambda name: True)
    monkeypatch.setattr(timing, 'LEAST_SECONDS', 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def curve(case=CASE, sizes=(1, 2, 4, 8), label='k=7'):
    return Curve(case, label, sizes, lambda elements: dict(plain=elements, other=None, fast=None))


@pytest.fixture
def ratios(monkeypatch):
    """Times of the two others relative to the fast form, by elements; the better one counts."""
    found = {}

    def time_rounds(runs, rounds, device, max_seconds):
        ratio = found[runs['plain']]
        return dict(plain=[Sample(9, 1)], other=[Sample(ratio, 1)], fast=[Sample(1, 1)])

    monkeypatch.setattr(timing, 'time_rounds', time_rounds)
    monkeypatch.setattr(tuning, 'why_not', lambda curve, runs: '')
    return found


@pytest.mark.parametrize(
    ('gains', 'least', 'tried'),
    [
        ([1.2, 1.2, 1.2, 1.2], 1, 4),
        ([0.8, 1.2, 1.2, 1.2], 2, 4),
        ([1.2, 1.02, 1.2, 1.2], 4, 3),  # won by less than the noise; below nothing is tried
        ([1.2, 1.2, 1.2, 1.0], None, 1),
    ],
)
def test_a_row_holds_from_the_smallest_map_down_to_which_the_form_always_won(
    ratios, gains, least, tried
):
    ratios.update(zip((1, 2, 4, 8), gains, strict=True))
    found = tuning.measure(curve(), CPU)
    assert found.least == least and len(found.ratios) == tried


def test_of_a_whole_block_the_callers_know_the_size(ratios):
    ratios[8] = 1.5
    case = CASE._replace(operation='in_bands')
    assert tuning.measure(curve(case, sizes=(8,)), CPU).least == 1


def make_real_curve(**changes):
    settings = dict(kernel_sizes=[23], sizes=TINY)
    found = tuning.curves_of(CPU, **settings | changes)
    wanted = tuned.Case('depthwise_cascade', True, 'long dilated lines', 'float32')
    return next(one for one in found if one.case == wanted)


def test_a_form_that_computes_something_else_wins_nothing(monkeypatch):
    assert tuning.measure(make_real_curve(), CPU, rounds=1).reason == ''
    right = onednn.run
    monkeypatch.setattr(onednn, 'run', lambda *call: right(*call) * 1.001)
    gains = tuning.measure(make_real_curve(), CPU, rounds=1)
    assert gains.least is None and gains.reason.startswith('its result is off by ')
    monkeypatch.setattr(onednn, 'run', lambda *call: right(*call) * float('nan'))
    assert tuning.measure(make_real_curve(), CPU, rounds=1).reason == 'its result is off by nan'


def test_a_form_that_does_not_run_wins_nothing(monkeypatch):
    monkeypatch.setattr(onednn, 'why_not', lambda *call: 'it is Sunday')
    assert tuning.measure(make_real_curve(), CPU) == Gains(None, {}, 'it is Sunday')


def test_every_shipped_row_of_a_cpu_is_measured_and_nothing_that_no_call_asks_for():
    measured_rows = {curve.case for curve in tuning.curves_of(CPU)}
    processors = (measured.AMD, measured.INTEL)
    shipped = {key[1:] for key in measured.TABLE if key.processor in processors}
    assert shipped <= {tuple(case) for case in measured_rows}
    keys = {measured.Key('x', *case) for case in measured_rows}
    assert {key.operation for key in keys} == {operation for operation, *_ in shipped}


def test_on_a_gpu_every_operation_dtype_and_kernel_size_has_a_curve():
    curves = tuning.curves_of(torch.device('cuda', 0))
    rows = {curve.case for curve in curves}
    # The cascade and GELU in both modes, the residual sum in training.
    assert len(rows) == 3 * (2 * 2 + 1)
    assert {case.dtype for case in rows} == {'float32', 'bfloat16', 'float16'}
    labels = {curve.label for curve in curves}
    assert labels == {'LSKA, k=11', 'LSKA, k=23', 'LSKA, k=35', '3x3', 'to a float32 stream'}


def test_an_impossible_kernel_size_is_named():
    with pytest.raises(ValueError, match='Nearest legal sizes: 7 and 11'):
        tuning.curves_of(CPU, kernel_sizes=[9])


@since('2.7', 'it takes no kernels in Triton')
@pytest.mark.parametrize(
    ('training', 'dtype'), [(True, 'float32'), (False, 'bfloat16'), (True, 'float16')]
)
def test_the_curves_of_a_gpu_run_by_the_interpreter(training, dtype, rounding_of_a_gpu):
    pytest.importorskip('triton')
    # The device of the maps alone is another.
    for one in tuning.gpu_curves(CPU, training, dtype, [7], TINY[:1]):
        gains = tuning.measure(one, CPU, rounds=1)
        assert not gains.reason and list(gains.ratios) == [TINY[0]]


def test_maps_have_exactly_so_many_elements():
    for exponent in range(6, 15):
        n, c, h, w = tuning.shape_of(2**exponent)
        assert n * c * h * w == 2**exponent and h <= w <= 2 * h and (n, c) == (1, 64)


def test_of_several_kernel_sizes_the_one_that_needs_the_largest_map_counts():
    other = CASE._replace(dtype='float16')
    gains = iter([Gains(4, {}), Gains(16, {}), Gains(None, {}, 'it fails'), Gains(1, {})])
    curves = [curve(), curve(label='k=9'), curve(other), curve(other)]
    stream = io.StringIO()
    found, told = tuning.tune(curves, CPU, 1, lambda *_: next(gains), stream)
    assert found == {CASE: 16, other: None}
    assert told == ['depthwise_cascade, training, float16, k=7: it fails']
    lines = stream.getvalue().splitlines()
    assert '1/4, 0 s: depthwise_cascade, training, float32, k=9' in lines[1]
    assert lines[-1] == f'[{24 * "#"}] 4/4, 0 s' and len(lines) == 5


def test_a_row_that_was_not_measured_whole_is_left_out(monkeypatch):
    now = iter([0, 0, 0, 0, 61, 61, 61, 61])
    monkeypatch.setattr(tuning, 'time', SimpleNamespace(monotonic=lambda: next(now)))
    found, told = tuning.tune([curve(), curve()], CPU, 1, lambda *_: Gains(4, {}), io.StringIO())
    assert found == {}
    assert told == ['depthwise_cascade, training, float32: not measured, 1 minutes were over']


def test_blocks_come_before_memory_is_kept(monkeypatch):
    allocators = []
    monkeypatch.setattr(timing, 'set_allocator', allocators.append)
    block = curve(CASE._replace(operation='in_bands'))
    tuning.tune([curve(), block], CPU, 1, lambda *_: Gains(1, {}), io.StringIO())
    assert allocators == ['default', 'keep']


def time_once(runs):
    return {name: [timing.time_once(run, CPU)] for name, run in runs.items()}


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Tiny maps, and a file that is in use; what was written is its value."""
    few = functools.partial(tuning.curves_of, kernel_sizes=[7], sizes=TINY[:1])
    monkeypatch.setattr(tuning, 'curves_of', few)
    monkeypatch.setattr(timing, 'time_rounds', lambda runs, rounds, *_: time_once(runs))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    path = tmp_path / 'cache' / 'tuned.json'
    monkeypatch.setenv('MMLSKA_TUNED', str(path))
    measured.forget()
    yield path
    monkeypatch.undo()
    measured.forget()


def test_the_command_writes_the_file_and_tells_what_changed(quick, capsys):
    other = tuned.Table(tuned.Place('a', 'b', 'c', ''), '2026-01-01', {CASE: 1})
    tuned.write(quick, [other])
    assert main(['tune', '--device', 'cpu']) == 0
    printed = capsys.readouterr()
    before, table = tuned.read(quick)
    assert before == other
    assert table.place == measured.place_of(CPU)
    assert {case.operation for case in table.least} == {
        'large_kernel_attention', 'depthwise_cascade', 'in_fast_layout', 'in_bands'
    }  # fmt: skip
    lines = printed.out.splitlines()
    assert len(lines) == len(table.least) + 2 and lines[-1] == f'written to {quick}'
    assert lines[1].startswith('in_fast_layout, inference, float32: ')
    measured.forget()
    own = measured.tuned_rows(table.place.processor)
    assert {key[1:]: row.least for key, row in own.items()} == dict(table.least)


def test_a_broken_file_is_replaced_and_another_one_is_named(quick, tmp_path, capsys):
    other = tmp_path / 'other.json'
    other.write_text('{')
    assert main(['tune', '--output', str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f'{other} cannot be read' in lines[-3] and lines[-3].endswith('it is replaced')
    assert lines[-1] == f'MMLSKA_TUNED={other} takes it into force'
    assert len(tuned.read(other)) == 1 and not quick.exists()


def test_what_cannot_be_tuned_is_told(quick, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert main(['tune', '--device', 'cuda']) == 1
    assert "'cuda' is not there" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(tuning, 'why_no_triton', lambda device: '')
    monkeypatch.setattr(tuning, 'why_failed', lambda device: 'no C compiler')
    assert main(['tune', '--device', 'cuda']) == 1
    assert 'cuda:0 has no fast forms: no C compiler' in capsys.readouterr().err
    monkeypatch.setenv('MMLSKA_TUNED', 'off')
    assert main(['tune']) == 1
    assert 'name one to write with --output' in capsys.readouterr().err


def test_changes_are_told_beside_what_was_in_force(monkeypatch):
    rows = {measured.Key('x', *CASE): measured.Row(8, '', '')}
    monkeypatch.setattr(measured, 'rows_in_force', lambda processor: rows)
    other = CASE._replace(training=False)
    assert tuning.changes('x', {CASE: None, other: 1}) == [
        'depthwise_cascade, training, float32: never (was: from 8 elements on)',
        'depthwise_cascade, inference, float32: always (was: not known)',
    ]
    assert tuning.changes('x', {CASE: 8}) == [
        'depthwise_cascade, training, float32: from 8 elements on'
    ]
