"""A dry run of the three calls: tiny shapes, and stand-ins for the kernels."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from script_runs import REPOSITORY

from benchmarks import depthwise, gpu_first, gpu_report, report, run
from benchmarks.gpu_first import Case, Settings
from benchmarks.suites import gpu_suite
from mmlska.analysis import timing
from mmlska.ops import dispatch, measured, tuned
from mmlska.ops.depthwise_cascade import reference as cascade_reference
from mmlska.ops.depthwise_gelu import reference as gelu_reference
from mmlska.ops.residual import operation as residual_sum


@pytest.fixture
def stand_ins(monkeypatch):
    """Forms of the name 'triton' that run on the CPU, and count what they are asked for."""
    found = SimpleNamespace(factor=1.0, calls=[])
    for operation, reference in (
        (dispatch.CASCADE, cascade_reference),
        (dispatch.CONV_GELU, gelu_reference),
    ):

        def compute(*call, reference=reference, name=operation.name):
            found.calls.append(name)
            return found.factor * reference.run(*call)

        form = SimpleNamespace(run=compute, why_not=lambda *call: '', why_slower=lambda call: '')
        monkeypatch.setitem(operation.fast, 'triton', form)
    monkeypatch.setattr(dispatch, 'why_failed', lambda device: '')
    monkeypatch.setattr(dispatch, 'triton_is_usable', lambda device: True)
    monkeypatch.setattr(residual_sum, '_choose', lambda *call: ('plain', 'it is a stand-in'))
    monkeypatch.setattr(timing, 'LEAST_SECONDS', 0.0)
    monkeypatch.setattr(timing, 'set_allocator', lambda name: True)
    return found


@pytest.fixture
def settings(stand_ins, small_copies, tmp_path):
    threads = torch.get_num_threads()
    yield Settings('cpu', tmp_path, 10.0, workers=0, small=True, rounds=1)
    torch.set_num_threads(threads)


def results_of(settings, name):
    return json.loads((settings.out / name).read_text())['results']


def by_step(records):
    found = {}
    for record in records:
        found.setdefault(record['step'], []).append(record)
    return found


@pytest.mark.slow
def test_the_first_call_checks_times_and_tunes(settings, monkeypatch):
    # The profiler takes its time.
    monkeypatch.setattr(depthwise, 'longest_kernel', lambda run, device: '')
    assert gpu_first.run_part(1, settings, 'the command') == []
    found = by_step(results_of(settings, 'part1.json'))
    assert list(found) == ['correctness', 'copies', 'stages', 'tune', 'baseline']
    # Two operations, three dtypes, two layouts; two operations, two dtypes, two modes.
    assert len(found['correctness']) == 12 and all(r['passed'] for r in found['correctness'])
    assert len(found['stages']) == 8
    variants = found['stages'][0]['variants']
    assert list(variants) == ['plain contiguous', 'plain channels_last', 'fast']
    assert all(v['milliseconds'] > 0 and v['wall_milliseconds'] > 0 for v in variants.values())
    assert variants['fast']['ratio_to_fast'] == 1
    assert {r['operation'] for r in found['tune'] if 'operation' in r} == {
        'depthwise_cascade', 'depthwise_gelu', 'add_scaled'
    }  # fmt: skip
    (table,) = tuned.read(settings.out / 'tuned.json')
    assert len(table.least) == 2 * (2 * 2 + 1)
    assert len(found['baseline']) == 5 * 2 and len(found['baseline'][0]['rows']) == 3


def test_the_second_call_times_other_constants(settings, monkeypatch):
    constants = dict(NUM_WARPS=4, AHEAD=8, PROGRAMS=4, OPTIONS=dict(num_warps=4, other=1))
    module = SimpleNamespace(**constants)
    seen = []
    right = dispatch.CASCADE.fast['triton'].run

    def look(*call):
        seen.append((module.NUM_WARPS, module.OPTIONS['num_warps'], module.AHEAD, module.PROGRAMS))
        return right(*call)

    dispatch.CASCADE.fast['triton'].run = look
    monkeypatch.setattr(gpu_first, 'kernels', lambda: module)
    assert gpu_first.run_part(2, settings, '') == []
    records = results_of(settings, 'part2.json')
    assert [r['constant'] for r in records if 'skipped' in r] == [
        'AHEAD_BACK', 'PROGRAMS_BACK', 'MOST_FOR_TWO'
    ]  # fmt: skip
    timed = [r for r in records if 'speed_ups' in r]
    assert [r['training'] for r in timed] == [False, True]
    assert list(timed[0]['speed_ups']) == [
        'shipped', 'NUM_WARPS=2', 'NUM_WARPS=8', 'AHEAD=4', 'AHEAD=16', 'PROGRAMS=2', 'PROGRAMS=8'
    ]  # fmt: skip
    shipped = (4, 4, 8, 4)
    assert set(seen) == {
        shipped, (2, 2, 8, 4), (8, 8, 8, 4), (4, 4, 4, 4), (4, 4, 16, 4), (4, 4, 8, 2), (4, 4, 8, 8)
    }  # fmt: skip
    assert vars(module) == constants


def test_the_constants_are_those_of_the_kernels():
    pytest.importorskip('triton')
    known = [name for name in gpu_first.CONSTANTS if hasattr(gpu_first.kernels(), name)]
    assert known, 'the sweep changes nothing: name the constants that there are'
    before = {name: getattr(gpu_first.kernels(), name) for name in known}
    with gpu_first.constants({known[0]: 77}):
        assert getattr(gpu_first.kernels(), known[0]) == 77
    assert {name: getattr(gpu_first.kernels(), name) for name in known} == before


@pytest.mark.slow
def test_the_third_call_fills_the_tables_of_the_suite(settings, monkeypatch, capsys):
    monkeypatch.setattr(gpu_first.shutil, 'which', lambda name: None)
    monkeypatch.setattr(gpu_first.Path, 'glob', lambda path, pattern: [])
    small = [one.but(arch='tiny', compile=False) for one in gpu_first.model_settings(settings)[:1]]
    monkeypatch.setattr(gpu_first, 'model_settings', lambda settings: small)
    assert gpu_first.run_part(3, settings, '') == []
    models, memcheck = results_of(settings, 'part3.json')
    assert 'no compute-sanitizer' in memcheck['skipped']
    assert models['forms'] == ['triton'] and models['settings']['dtype'] == 'bfloat16'
    # What the third call measured is found by the suite, however long that would measure it.
    suite = {'One': [small[0].but(compile=True, rounds=15)]}
    run.look_suite_up('gpu', suite, [str(settings.out / 'part3.json')], None)
    assert '| not measured |' not in capsys.readouterr().out.replace('  ', '')


def test_the_models_are_cases_of_the_suite_and_two_are_compiled():
    chosen = gpu_first.model_settings(Settings())
    suite = {run.without_effort(one) for cases in gpu_suite().values() for one in cases}
    assert {run.without_effort(one) for one in chosen} <= suite
    assert len(chosen) == len({run.without_effort(one) for one in chosen})
    assert sum(one.compile for one in chosen) == 2
    assert all(one.autocast and one.backend == 'triton' for one in chosen)
    assert {one.case for one in chosen} == {'block', 'backbone'}


def test_a_wrong_kernel_is_listed_and_ends_nothing(settings, stand_ins, monkeypatch):
    stand_ins.factor = 1.1
    monkeypatch.setitem(gpu_first.PARTS, 1, [(gpu_first.correctness, 0.5), (gpu_first.copies, 0.5)])
    failures = gpu_first.run_part(1, settings, '')
    assert len(failures) == 12 and failures[0].startswith('correctness: ')
    assert list(by_step(results_of(settings, 'part1.json'))) == ['correctness', 'copies']
    stand_ins.factor = float('nan')
    case = gpu_first.correctness_cases(settings)[0]
    assert gpu_first.check(case, 'cpu')['passed'] is False


def test_a_kernel_that_does_not_run_is_an_error(settings, monkeypatch):
    monkeypatch.setattr(dispatch, 'why_failed', lambda device: 'no C compiler')
    case = gpu_first.correctness_cases(settings)[0]
    with pytest.raises(RuntimeError, match='triton did not run: no C compiler'):
        gpu_first.check(case, 'cpu')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_of_a_case_is_written_in_its_place(workers):
    found = list(gpu_first.in_pool(int, ['x'], workers, time.monotonic() + 100))
    assert found[0]['case'] == 'x' and found[0]['error'].startswith('ValueError: invalid literal')


def test_a_step_that_fails_leaves_the_others_their_time(settings, monkeypatch):
    def broken(settings, until):
        yield dict(a=1)
        raise OSError('the disk is full')

    def other(settings, until):
        assert until <= time.monotonic() + 60 * settings.max_minutes
        yield dict(b=2)

    monkeypatch.setitem(gpu_first.PARTS, 1, [(broken, 0.5), (other, 0.5)])
    (failure,) = gpu_first.run_part(1, settings, '')
    assert failure == "broken: {'error': 'OSError: the disk is full'}"
    assert [r.get('b') for r in results_of(settings, 'part1.json')] == [None, None, 2]


def test_results_are_on_the_disk_before_the_next_case(settings, monkeypatch):
    found = []

    def step(settings, until):
        for number in range(3):
            path = settings.out / 'part1.json'
            found.append(len(results_of(settings, path.name)) if path.exists() else 0)
            yield dict(number=number)

    monkeypatch.setitem(gpu_first.PARTS, 1, [(step, 1.0)])
    gpu_first.run_part(1, settings, '')
    assert found == [0, 1, 2]


def test_what_there_is_no_time_for_is_counted():
    found = list(gpu_first.in_turn([1, 2, 3], time.monotonic() - 1, lambda case: {}, None))
    assert found == [dict(skipped='3 of 3: the minutes were over')]


def test_a_library_that_is_missing_is_no_failure():
    def run():
        raise ImportError("No module named 'mmcv'")

    record = gpu_first.attempt(dict(step='models', what='VAN'), run)
    assert 'mmcv' in record['skipped'] and gpu_report.failures_of([record]) == []


def test_the_shares_of_a_call_are_whole_and_three_calls_fit_a_lease():
    for steps in gpu_first.PARTS.values():
        assert sum(share for _, share in steps) == pytest.approx(1)
    assert 3 * Settings().max_minutes <= 14


def test_the_stages_are_those_of_the_base_backbone():
    assert Settings().stage_shapes([2]) == [
        (2, 64, 200, 320), (2, 128, 100, 160), (2, 320, 50, 80), (2, 512, 25, 40)
    ]  # fmt: skip
    assert len(Settings().stage_shapes()) == 8


def stage(ratio, **changes):
    times = {'plain contiguous': 8.0, 'plain channels_last': 4.0, 'fast': 4.0 / ratio}
    variants = {
        name: dict(milliseconds=ms, wall_milliseconds=2 * ms, ratio_to_fast=ms / times['fast'])
        for name, ms in times.items()
    }
    case = Case('depthwise_cascade', 23, (2, 64, 200, 320), 'bfloat16').record() | changes
    return dict(case, step='stages', variants=variants)


def test_the_report_has_tables_failures_and_rows_and_fills_a_document(tmp_path, capsys):
    records = [
        dict(step='correctness', passed=True),
        dict(step='correctness', passed=False, errors=[1.0]),
        dict(step='copies', dtype='bfloat16', bytes_per_second=3e12),
        stage(2.0),
        dict(step='tune', processor='compute capability 9.0', operation='depthwise_gelu',
             training=True, case='', dtype='bfloat16', least=2**18),
        dict(step='tune', processor='compute capability 9.0', operation='depthwise_gelu',
             training=False, case='', dtype='bfloat16', least=None),
        dict(step='sweep', shape=[2, 64, 8, 8], training=True,
             speed_ups={'shipped': 1.0, 'AHEAD=4': 1.25}),
    ]  # fmt: skip
    file, page = tmp_path / 'part1.json', tmp_path / 'page.md'
    report.write_json(file, 'x', 'cpu', records)
    page.write_text('\n'.join(report.markers('gpu-first')))
    gpu_report.tell([str(file)], str(page))
    printed = capsys.readouterr().out
    assert '1 of 2 cases compute what float64 on the CPU does' in printed
    assert 'reads and writes 3.00 TB/s' in printed
    cells = [[c.strip() for c in line.split('|')] for line in printed.splitlines()]
    row = ['depthwise_cascade', 'train', '2×64×200×320', 'bfloat16', '8', '4', '2', '2.00', '2.00']
    assert ['', *row, ''] in cells
    assert ['', 'train', '2×64×8×8', '1.00', '1.25', ''] in cells
    assert "- correctness: {'errors': [1.0]}" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith('    Key(')]
    made = eval(line.strip().rstrip(',').replace('): ', '), '), vars(measured))
    key = measured.Key('compute capability 9.0', 'depthwise_gelu', True, '', 'bfloat16')
    assert made == (key, measured.Row(2**18, report.today(), 'docs/benchmarks.md, GPU'))
    assert '2×64×200×320' in page.read_text() and 'Key(' not in page.read_text()


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    with pytest.raises(SystemExit):
        gpu_first.main(['1', '--out', str(tmp_path)])
    assert "'cuda' is not there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_document_has_a_part_for_it():
    report.check_markers(REPOSITORY / 'docs' / 'benchmarks.md', 'gpu-first')
