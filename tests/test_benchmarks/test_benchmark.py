import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import measure, report, run, suites
from benchmarks.measure import OURS, REFERENCE
from benchmarks.settings import CASES, KINDS, OP_KINDS, Settings
from benchmarks.subjects import MapSubject, depthwise_convs, randomize_norms
from mmlska.analysis import timing
from mmlska.analysis.timing import Sample, Spread
from mmlska.layers.build import build_layer
from mmlska.ops import depthwise_cascade, record_choices, use_backend
from mmlska.ops.large_kernel_attention import onednn

CPU = torch.device('cpu')
DOCS = Path(__file__).parents[2] / 'docs' / 'benchmarks.md'
TINY = Settings('layer', shape=(1, 8, 12, 10), kernel_size=7, rounds=2, allocator='default')


@pytest.fixture(autouse=True)
def same_threads():
    """Measuring sets the number of threads of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Timing


def test_times_are_multiples_of_the_first_ones(monkeypatch):
    samples = dict(a=[Sample(2, 9), Sample(4, 9)], b=[Sample(3, 9), Sample(6, 9)])
    monkeypatch.setattr(timing, 'time_rounds', lambda runs, rounds, device: samples)
    assert timing.relative_times({}, 2, CPU) == dict(a=1, b=1.5)


def test_every_round_runs_each_function_once_in_changing_order(monkeypatch):
    monkeypatch.setattr(timing, 'LEAST_SECONDS', 0.0)
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in 'abc'}
    samples = timing.time_rounds(runs, 8, CPU)
    assert {name: len(found) for name, found in samples.items()} == dict(a=8, b=8, c=8)
    rounds = [tuple(calls[i : i + 3]) for i in range(3, len(calls), 3)]
    assert len(rounds) == 8 and all(set(one) == set('abc') for one in rounds)
    assert len(set(rounds)) > 1


def test_short_functions_are_repeated_equally_often_and_reported_by_the_call(monkeypatch):
    monkeypatch.setattr(timing, 'LEAST_SECONDS', 0.01)
    calls = []
    timing.time_rounds({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, 1, CPU)
    assert calls.count('a') == calls.count('b') > 100

    ticks = iter(range(100))
    clock = SimpleNamespace(process_time=lambda: next(ticks), perf_counter=lambda: 4 * next(ticks))
    monkeypatch.setattr(timing, 'time', clock)
    # Four readings, one apart: the process clock sees two ticks pass, the wall four times as many.
    assert timing.time_once(lambda: None, CPU, repeats=2) == Sample(busy=1.0, wall=4.0)


def test_no_round_begins_after_the_budget_once_three_are_done():
    samples = timing.time_rounds({'a': lambda: None}, 50, CPU, max_seconds=0)
    assert len(samples['a']) == timing.LEAST_ROUNDS


def test_garbage_is_collected_again_after_a_failure():
    import gc

    calls = []

    def fail_later():
        calls.append(1)
        if len(calls) > 5:
            raise ValueError('broken')

    with pytest.raises(ValueError, match='broken'):
        timing.time_rounds({'a': fail_later}, 9, CPU)
    assert gc.isenabled()


def test_quartiles_and_ratios_within_rounds():
    assert Spread.of([3.0]) == (3, 3, 3)
    assert Spread.of([1, 2, 3, 4]) == (1.75, 2.5, 3.25)
    # The machine is ten times slower in the last round; the ratios do not see it.
    reference = [Sample(2, 3), Sample(4, 3), Sample(30, 3)]
    ours = [Sample(1, 1), Sample(2, 1), Sample(10, 1)]
    assert timing.ratios(reference, ours, 'busy') == (2, 2, 2.5)
    assert timing.ratios(reference, ours, 'wall') == (3, 3, 3)


@pytest.mark.parametrize(
    ('device', 'threads', 'clock'), [('cpu', 1, 'busy'), ('cpu', 2, 'wall'), ('cuda', 8, 'busy')]
)
def test_processor_time_counts_for_one_thread_only(device, threads, clock):
    assert timing.headline_clock(torch.device(device), threads) == clock


def test_peak_memory_is_that_of_the_tensors_alive_at_once():
    x = torch.zeros(2**18)

    def run():
        a = x + 1
        b = a + 1
        del a
        c = torch.cat([b, b])
        del b
        return c + 1

    # The most at once: c and the result, each twice the size of x; a and b, or b and c before.
    assert timing.peak_bytes(run, CPU) == pytest.approx(4 * x.nbytes, rel=0.01)
    assert timing.peak_bytes(lambda: x.add_(1), CPU) < 2**12


def test_the_memory_of_a_convolution_is_at_least_its_result():
    conv, x = nn.Conv2d(8, 16, 3, padding=1), torch.zeros(1, 8, 32, 32)
    assert timing.peak_bytes(lambda: conv(x), CPU) >= 16 * 32 * 32 * 4


def test_relative_errors_are_of_the_norm():
    wanted = [torch.tensor([3.0]), torch.tensor([4.0])]
    got = [torch.tensor([3.0]), torch.tensor([4.5])]
    assert timing.relative_error(got, wanted) == pytest.approx(0.1)
    assert timing.relative_error(wanted, wanted) == 0
    assert math.isnan(timing.relative_error([torch.tensor([math.nan])], [torch.ones(1)]))


def test_the_bandwidth_is_what_a_copy_reads_and_writes(small_copies):
    bandwidth = timing.copy_bandwidth(CPU, torch.float32)
    assert 1e7 < bandwidth < 1e14


def test_the_allocator_can_be_set_where_there_is_one(monkeypatch):
    calls = []

    def mallopt(option, size):
        calls.append((option, size))
        return 1

    monkeypatch.setattr(timing.ctypes, 'CDLL', lambda name: SimpleNamespace(mallopt=mallopt))
    assert timing.set_allocator('default') and not calls
    assert timing.set_allocator('keep') and calls == [(-3, 2**30), (-1, 2**30)]
    monkeypatch.setattr(timing.ctypes, 'CDLL', lambda name: SimpleNamespace())
    assert not timing.set_allocator('keep')


# What is measured


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(case='layr'), "case 'layr' is unknown: .*did you mean layer"),
        (dict(mode='training'), "mode 'training' is unknown: allowed are forward, train"),
        (dict(layout='channel_last'), 'did you mean channels_last'),
        (dict(dtype='float31'), 'did you mean float32'),
        (dict(allocator='kept'), 'did you mean keep'),
        (dict(case='op', attention='ECA'), "attention of an op 'ECA' is unknown: .*LKATrivial"),
        (dict(fuse=True, mode='train'), "takes mode 'forward', not 'train'"),
        (dict(fuse=True, case='op'), 'nothing to fuse'),
        (dict(case='detector', layout='channels_last'), 'whole model are contiguous'),
        (dict(case='evaluation', mode='train'), "mode 'forward', not 'train'"),
        (dict(case='evaluation', compile=True), 'many'),
        (dict(case='backbone', dtype='float64'), 'op, layer and block'),
        (dict(shape=(1, 2, 3)), r'N C H W, got \(1, 2, 3\)'),
        (dict(shape=(1, 8, 0, 4)), 'positive'),
        (dict(rounds=0), 'rounds must be at least 1, got 0'),
        (dict(threads=0), 'threads must be at least 1, got 0'),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TINY.but(**changes).check()


def test_a_device_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    with pytest.raises(ValueError, match=r"device 'cuda' is not there: PyTorch sees 0 CUDA"):
        measure.measure(TINY.but(device='cuda'))


def test_unknown_layers_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"'LSKAA' is unknown: .*did you mean LSKA"):
        MapSubject(TINY.but(attention='LSKAA'))
    with pytest.raises(ValueError, match='ContextAggregation takes no kernel size, but got 7'):
        MapSubject(TINY.but(attention='ContextAggregation'))
    with pytest.raises(ValueError, match='Nearest legal sizes: 7 and 11'):
        MapSubject(TINY.but(kernel_size=9))
    with pytest.raises(ValueError, match='tiny'):
        MapSubject(Settings('backbone', arch='tny', shape=(1, 3, 32, 32)))


def test_an_evaluation_says_which_data_it_lacks(tmp_path):
    settings = Settings('evaluation')
    assert 'no folder' in settings.what_is_missing()
    assert 'instances_val.json' in settings.but(data=str(tmp_path)).what_is_missing()
    assert Settings('detector').what_is_missing() is None


@pytest.mark.parametrize('kind', OP_KINDS)
def test_an_op_is_the_cascade_inside_the_layer(kind):
    subject = MapSubject(TINY.but(case='op', attention=kind, kernel_size=11))
    number = {'LSKA': 4, 'LKATrivial': 1}.get(kind, 2)
    assert len(subject.module.convs) == number
    x = subject.x
    for conv in subject.module.convs:
        x = conv(x)
    with use_backend('plain'):
        assert torch.equal(subject.run(subject.module)['outputs'][0], x)


def test_depthwise_convolutions_exclude_pointwise_ones():
    layer = build_layer(dict(type='LSKA'), 8)
    assert [conv.kernel_size for conv in depthwise_convs(layer)] == [(1, 5), (5, 1), (1, 7), (7, 1)]


@pytest.mark.parametrize('case', ['op', 'layer', 'block', 'backbone'])
@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_training_gives_gradients_of_all_parameters_and_of_a_map(case, mode):
    shape = (2, 3, 32, 32) if case == 'backbone' else (2, 8, 6, 5)
    subject = MapSubject(Settings(case, mode, shape=shape, kernel_size=7))
    found = subject.run(subject.module)
    parameters = len(list(subject.module.parameters()))
    if mode == 'forward':
        assert set(found) == {'outputs'} and not found['outputs'][0].requires_grad
    else:
        assert len(found['gradients']) == parameters + (case != 'backbone')
        assert all(grad.abs().sum() > 0 for grad in found['gradients'][:1])
    assert len(found['outputs']) == (4 if case == 'backbone' else 1)


def test_layout_dtype_and_mode_reach_the_module():
    settings = TINY.but(layout='channels_last', dtype='bfloat16', mode='train')
    subject = MapSubject(settings)
    assert subject.x.is_contiguous(memory_format=torch.channels_last)
    assert {subject.x.dtype, subject.module.conv1.weight.dtype} == {torch.bfloat16}
    assert subject.module.training and not MapSubject(TINY).module.training


def test_autocast_keeps_the_parameters_of_a_backbone():
    subject = MapSubject(Settings('backbone', dtype='bfloat16', shape=(1, 3, 32, 32)))
    assert {parameter.dtype for parameter in subject.module.parameters()} == {torch.float32}
    with subject.autocast():
        assert subject.module.patch_embed1.projection(subject.x).dtype == torch.bfloat16


def test_norms_do_something():
    norm = nn.BatchNorm2d(4).eval()
    randomize_norms(nn.Sequential(norm))
    x = torch.randn(1, 4, 3, 3)
    assert not torch.allclose(norm(x), x, atol=0.05)


# Measuring


def test_a_result_holds_what_was_asked_for():
    result = measure.measure(TINY.but(mode='train', fuse=False))
    assert list(result.samples) == [REFERENCE, measure.AGAIN, OURS]
    assert all(len(samples) == 2 for samples in result.samples.values())
    assert set(result.errors) == {'outputs', 'gradients'}
    assert result.clock == 'busy' and result.milliseconds(OURS) > 0
    assert result.speed_up(REFERENCE) == (1, 1, 1)
    # The input's gradient alone is as large as the map.
    assert all(found > 8 * 12 * 10 * 4 for found in result.bytes.values())
    assert result.forms == ['plain']


def test_the_form_that_ran_is_recorded():
    forced = measure.measure(TINY.but(backend='cpu', layout='channels_last'))
    assert forced.forms == ['cpu (channels_last)']
    with record_choices() as choices, use_backend('cpu'):
        depthwise_cascade(torch.ones(1, 1, 3, 3), [torch.ones(1, 1, 1, 3)], [None], [1])
    assert measure.name_forms(choices) == ['cpu']
    attention = choices[0]._replace(operation='large_kernel_attention')
    assert measure.name_forms([attention]) == ['cpu']
    # Its cascade is chosen, and told, for itself.
    assert measure.name_forms([attention._replace(form='plain'), choices[0]]) == ['cpu']


def test_a_reference_by_a_fast_form_is_refused():
    measure.check_reference(['plain', 'plain (channels_last)'])
    measure.check_reference([])
    with pytest.raises(RuntimeError, match='must be plain, but was computed by bands, cpu'):
        measure.check_reference(['bands', 'cpu', 'plain'])


def test_a_result_that_differs_is_an_error(monkeypatch):
    right = onednn.run

    def wrong(x, weights, biases, dilations):
        return right(x, weights, biases, dilations) * 1.001

    monkeypatch.setattr(onednn, 'run', wrong)
    with pytest.raises(ArithmeticError, match=r'LSKA k=7, 1×8×12×10, forward: the outputs of ours'):
        measure.measure(TINY.but(backend='cpu'))


def test_a_result_that_is_not_a_number_is_an_error():
    nan = dict(outputs=[torch.full((2,), math.nan)])
    with pytest.raises(ArithmeticError, match='differ from the reference by nan'):
        measure.check_errors(nan, dict(outputs=[torch.ones(2)]), TINY)


def test_the_fused_block_is_compared_with_the_one_that_is_not():
    settings = Settings('block', shape=(1, 8, 6, 5), kernel_size=7, fuse=True, rounds=1)
    result = measure.measure(settings)
    assert 0 < result.errors['outputs'] < 1e-5
    assert result.settings.name == 'VAN block, LSKA k=7, FFN ×8, fused'


def test_an_op_is_compared_with_a_copy(small_copies):
    result = measure.measure(TINY.but(case='op'))
    assert 0 < result.copy_share < 1
    assert measure.measure(TINY).copy_share is None


def test_each_compiled_side_has_a_compiler_of_its_own(monkeypatch):
    from benchmarks.subjects import new_inductor

    assert new_inductor() != new_inductor()
    compilers = []

    def compile_nothing(module, backend):
        compilers.append(backend)
        return module

    monkeypatch.setattr(torch, 'compile', compile_nothing)
    result = measure.measure(TINY.but(compile=True))
    assert len(compilers) == 2 and compilers[0] != compilers[1]
    assert list(result.samples)[3:] == [measure.COMPILED, measure.OURS_COMPILED]
    table = run.table([result], with_compiled=True)
    assert len({line.count('|') for line in table.splitlines()}) == 1


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own_and_its_errors_come_back():
    result = measure.measure_apart(TINY)
    assert result.settings == TINY and result.forms == ['plain']
    with pytest.raises(ValueError, match='Nearest legal sizes'):
        measure.measure_apart(TINY.but(kernel_size=9))


# Whole models


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['forward', 'train'])
@pytest.mark.parametrize(
    ('config', 'library'),
    [
        ('mask-rcnn_van-lska-nano_fpn_demo_digits', 'mmdet'),
        ('fpn_van-lska-nano_demo_digits-128x128', 'mmseg'),
    ],
)
def test_a_step_of_a_detector_and_of_a_segmentor(config, library, mode):
    pytest.importorskip(library)
    settings = Settings('detector', mode, config=config, shape=(2, 3, 64, 96), rounds=1)
    result = measure.measure(settings)
    compared = {'outputs'} | ({'loss', 'drawn_gradients'} if mode == 'train' else set())
    assert set(result.errors) == compared
    assert result.settings.name == config


@pytest.mark.slow
def test_steps_do_not_change_the_weights():
    pytest.importorskip('mmdet')
    from benchmarks.whole_models import StepSubject

    config = 'mask-rcnn_van-lska-nano_fpn_demo_digits'
    subject = StepSubject(Settings('detector', 'train', config=config, shape=(1, 3, 64, 64)))
    before = [parameter.clone() for parameter in subject.model.parameters()]
    step = subject.runner(subject.model)
    losses = [subject.run(subject.model).item(), (step(), subject.run(subject.model).item())[1]]
    assert losses[0] == losses[1] > 0
    assert all(map(torch.equal, before, subject.model.parameters()))


@pytest.mark.slow
def test_an_evaluation_reads_predicts_and_gives_the_metric(shared):
    pytest.importorskip('mmdet')
    from benchmarks.whole_models import EvaluationSubject

    data = shared / 'data' / 'coco_mini'
    if not data.is_dir():
        pytest.skip(f'{data} is absent')
    settings = Settings('evaluation', shape=(2, 3, 64, 96), data=str(data), rounds=1)
    subject = EvaluationSubject(settings)
    assert len(subject.dataset) == 2
    assert 'coco/segm_mAP' in subject.run(subject.model)
    maps = subject.compare(subject.model)['outputs']
    assert len(maps) == 4 and max(maps[0].shape[2:]) <= 96 // 4


# Suites and documents


@pytest.mark.parametrize('name', suites.SUITES)
def test_every_case_of_a_suite_is_possible_and_there_once(name):
    cases = [one for part in suites.SUITES[name](None).values() for one in part]
    for settings in cases:
        settings.check()
    assert len(set(cases)) == len(cases)


def test_the_gpu_suite_has_all_that_is_to_be_compared():
    cases = [one for part in suites.gpu_suite().values() for one in part]
    assert {one.case for one in cases} == set(CASES) - {'layer', 'evaluation'}
    for kind in {one.case for one in cases}:
        own = [one for one in cases if one.case == kind]
        assert {one.mode for one in own} == {'forward', 'train'}
        assert {one.dtype for one in own} == {'bfloat16', 'float32'}
        assert {one.shape[0] for one in own} == {2, 16}
        assert all(one.compile and one.device == 'cuda' for one in own)
    assert {one.arch for one in cases if one.case == 'backbone'} == {'tiny', 'base'}
    sizes = {one.shape[2:] for one in cases if one.case in ('backbone', 'detector')}
    assert sizes == {(512, 512), (800, 1280)}


@pytest.mark.slow
def test_a_case_of_the_gpu_suite_runs_on_the_cpu_too(small_copies):
    (first, *_) = suites.gpu_suite()['Cascade of LSKA at the stages of VAN-base']
    small = first.but(device='cpu', shape=(2, 8, 9, 11), compile=False, rounds=1)
    assert measure.measure(small).errors['outputs'] < 0.05


def test_the_cpu_suite_has_the_kinds_layouts_and_whole_models():
    cases = [one for part in suites.cpu_suite('data').values() for one in part]
    assert {one.attention for one in cases} == set(OP_KINDS)
    assert {one.case for one in cases} == set(CASES)
    assert {one.layout for one in cases if one.case == 'layer'} == {'contiguous', 'channels_last'}
    assert {one.data for one in cases if one.case == 'evaluation'} == {'data'}
    assert {one.attention for part in suites.maps_suite().values() for one in part} == set(KINDS)


@pytest.fixture
def one_case(monkeypatch):
    """A suite of one small case, measured in this process."""
    monkeypatch.setattr(run, 'measure_apart', measure.measure)
    return {'One': [TINY]}


def squeezed(text):
    """Tables without the blanks that align their columns."""
    return re.sub(' +', ' ', text)


def test_what_cannot_be_measured_is_said(one_case, monkeypatch, capsys):
    row = run.measure_or_tell(Settings('evaluation'))
    assert row[1] == 'not measured: no folder of images was given'

    def fail(settings):
        raise ImportError('mmdet is not installed')

    monkeypatch.setattr(run, 'measure_apart', fail)
    run.run_suite('cpu', one_case)
    text = squeezed(capsys.readouterr().out)
    assert '| LSKA k=7 | forward | 1×8×12×10 | not measured: mmdet is not installed |' in text


def test_a_case_that_fails_is_listed_and_the_others_go_on(one_case, capsys, tmp_path):
    broken, other = TINY.but(kernel_size=9), TINY.but(mode='train')
    record = tmp_path / 'record.json'
    with pytest.raises(SystemExit, match=r'LSKA k=9, forward, 1×8×12×10: failed: ValueError: '):
        run.run_suite('cpu', {'One': [broken, other]}, json=str(record))
    text = squeezed(capsys.readouterr().out)
    assert '| LSKA k=9 | forward | 1×8×12×10 | failed: ValueError: ' in text
    assert '| LSKA k=7 | train | 1×8×12×10 | plain |' in text
    (result,) = json.loads(record.read_text())['results']
    assert result['settings']['mode'] == 'train'


def test_results_are_on_the_disk_before_the_next_case_begins(monkeypatch, tmp_path):
    record, found = tmp_path / 'record.json', []

    def look(settings):
        found.append(len(json.loads(record.read_text())['results']) if found else 0)
        return measure.measure(settings)

    monkeypatch.setattr(run, 'measure_apart', look)
    run.run_suite('cpu', {'One': [TINY, TINY.but(mode='train')]}, json=str(record))
    assert found == [0, 1]


def test_no_case_begins_after_the_last_minute(one_case, capsys):
    run.run_suite('cpu', one_case, max_minutes=-1)
    assert 'not measured: -1 minutes were over' in capsys.readouterr().out


def test_tables_are_chosen_by_words_in_their_title_and_without_compiling():
    assert list(run.choose_suite('cpu', None, 'models', True)) == ['Whole models']
    assert run.choose_suite('cpu', None, None, True) == suites.cpu_suite()
    with pytest.raises(ValueError, match=r"'layers'.*there are LSKA, one layer; Depth-wise"):
        run.choose_suite('cpu', None, 'layers', True)
    with pytest.raises(
        ValueError, match="no suite 'gup': there are cpu, gpu, attention, maps; did you mean"
    ):
        run.choose_suite('gup', None, None, True)
    cases = run.choose_suite('gpu', None, 'Blocks', False)['Blocks of VAN-base']
    assert cases and not any(one.compile for one in cases)


def test_a_table_is_even_and_fills_short_rows_up():
    text = report.table({'case': 'left', 'times faster': 'right'}, [['a', '2.5'], ['long']])
    assert text.splitlines() == [
        '| case | times faster |',
        '| :--- | -----------: |',
        '| a    |          2.5 |',
        '| long |              |',
    ]


def test_the_document_has_a_part_for_each_suite_that_is_documented():
    for name in ('cpu', 'gpu', 'attention'):
        report.check_markers(DOCS, name)


def test_rewriting_changes_the_part_only_and_twice_is_once(tmp_path):
    path = tmp_path / 'page.md'
    begin, end = report.markers('cpu')
    path.write_text(f'# Before\n\n{begin}\nold\n{end}\n\nAfter.\n')
    report.rewrite(path, 'cpu', 'new\n')
    once = path.read_text()
    assert once == f'# Before\n\n{begin}\n\nnew\n\n{end}\n\nAfter.\n'
    report.rewrite(path, 'cpu', 'new')
    assert path.read_text() == once


@pytest.mark.parametrize('text', ['', '{begin}', '{end} {begin}', '{begin} {end} {end}'])
def test_a_document_without_the_part_stays_as_it_is(text, tmp_path):
    begin, end = report.markers('gpu')
    path = tmp_path / 'page.md'
    path.write_text(text.format(begin=begin, end=end))
    with pytest.raises(ValueError, match='once each, in order'):
        report.rewrite(path, 'gpu', 'new')
    assert path.read_text() == text.format(begin=begin, end=end)


def test_a_suite_is_listed_and_documented_without_measuring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    path, suite = tmp_path / 'page.md', suites.gpu_suite()
    path.write_text('\n'.join(report.markers('gpu')))
    run.look_suite_up('gpu', suite, [], str(path))
    number = sum(map(len, suite.values()))
    assert squeezed(capsys.readouterr().out).count('| not measured |') == number
    assert (
        f'Nothing was measured yet. `make bench-gpu` measures {number} cases.' in path.read_text()
    )
    with pytest.raises(ValueError, match='sees 0 CUDA devices'):
        run.run_suite('gpu', suite)


def test_a_suite_is_measured_into_document_and_json(one_case, tmp_path, capsys):
    page, record = tmp_path / 'page.md', tmp_path / 'new' / 'record.json'
    page.write_text('\n'.join(report.markers('cpu')))
    run.run_suite('cpu', one_case, str(page), str(record), 'the command')
    text = page.read_text()
    assert squeezed(text).count('| LSKA k=7 | forward | 1×8×12×10 | plain |') == 1
    assert 'Measured by `make bench` on' in text
    found = json.loads(record.read_text())
    assert found['command'] == 'the command' and found['results'][0]['settings']['kernel_size'] == 7
    assert '[1/1] LSKA k=7, forward' in capsys.readouterr().err

    # From the record come the same tables; what it does not hold is not measured.
    run.look_suite_up('cpu', one_case, [str(record)], str(page))
    assert page.read_text() == text
    run.look_suite_up('cpu', {'One': [TINY.but(mode='train'), TINY]}, [str(record)], str(page))
    assert '| LSKA k=7 | train | 1×8×12×10 | not measured |' in squeezed(page.read_text())
    elsewhere = tmp_path / 'elsewhere.json'
    elsewhere.write_text(record.read_text().replace(found['machine']['processor'], 'abacus'))
    with pytest.raises(ValueError, match=r'not of one machine: .*abacus'):
        report.read_json([record, elsewhere])


def test_json_holds_settings_machine_and_quartiles(tmp_path):
    path = tmp_path / 'results.json'
    report.write_json(path, 'x', 'cpu', [measure.measure(TINY).record()])
    found = json.loads(path.read_text())
    assert found['machine']['torch'] == torch.__version__ and found['machine']['processor']
    (result,) = found['results']
    assert result['settings']['shape'] == [1, 8, 12, 10]
    ours = result['variants']['ours']
    quartiles = ours['speed_up']
    assert quartiles['lower'] <= quartiles['median'] <= quartiles['upper']
    assert ours['rounds'] == 2 and result['bytes']['ours'] > 0


def test_sweeps_cover_the_kinds_and_both_modes():
    figures = pytest.importorskip('benchmarks.figures')
    swept = figures.kernel_sizes(Settings('layer'))
    assert {one.attention for one in swept} == set(KINDS)
    assert {one.kernel_size for one in swept} == {7, 11, 23, 35, 41, 53, 65}
    assert {one.mode for one in figures.input_sizes(Settings('layer'))} == {'forward', 'train'}
