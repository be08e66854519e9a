"""Every subject of ``python -m benchmarks``, in this process."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from script_runs import REPOSITORY

from benchmarks import depthwise, run
from benchmarks.__main__ import SUBJECTS, main
from benchmarks.layers import LAYERS
from benchmarks.measure import measure
from benchmarks.settings import KINDS

TINY = ['--shape', '1', '8', '12', '10', '--kernel-size', '7', '--rounds', '1']
TINY += ['--allocator', 'default']
SWEEP = ['--against', 'kernel-size', '--plot', 'x.png']


@pytest.fixture
def bench(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, expect=0):
        status = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        assert status == expect, printed.err
        return printed

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def rows_of(text):
    """Cells of the Markdown table in a text."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_help_is_quick_and_names_every_subject():
    program = (
        'import sys\n'
        'from benchmarks.__main__ import main\n'
        'try:\n'
        '    main(["--help"])\n'
        'except SystemExit as error:\n'
        '    assert not error.code\n'
        'assert not {"torch", "mmdet", "mmseg", "mmcv"} & set(sys.modules)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert set(SUBJECTS) <= set(done.stdout.split())


@pytest.mark.parametrize('subject', SUBJECTS)
def test_every_option_is_described(subject, bench):
    printed = bench(subject, '--help').out
    options = re.findall(r'^  (?:--?\S+|case|suite|FOLDER)\b.*(?:\n {10,}.*)*', printed, re.M)
    assert len(options) > 1
    # A description stands behind two blanks or on a line of its own.
    assert all(re.search(r'\S(?: {2,}|\n +)\S', option.strip()) for option in options), options


def test_a_case_prints_a_table_and_writes_json(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['x', 'case', '--mode', 'train'])
    done = bench('case', 'layer', *TINY, '--mode', 'train', '--json', 'new/result.json')
    header, _, row = rows_of(done.out)
    assert header[:6] == ['what', 'mode', 'map', 'computed by', 'official (ms)', 'ours (ms)']
    assert row[:4] == ['LSKA k=7', 'train', '1×8×12×10', 'plain']
    assert 'processor time of one thread; 1 rounds' in done.out
    record = json.loads((tmp_path / 'new' / 'result.json').read_text())
    assert record['command'] == 'python -m benchmarks case --mode train'
    assert record['machine']['cores'] == os.cpu_count()
    (result,) = record['results']
    assert result['settings']['mode'] == 'train' and result['errors']['gradients'] < 1e-4


@pytest.mark.parametrize(
    ('against', 'options', 'kinds'),
    [
        ('input-size', ['--kernel-size', '7'], ['LSKA k=7'] * 4),
        ('kernel-size', [], [f'{kind} k={k}' for kind in KINDS for k in (7, 11)]),
    ],
)
@pytest.mark.slow
def test_a_sweep_is_drawn(bench, tmp_path, monkeypatch, against, options, kinds):
    cv2 = pytest.importorskip('cv2')
    figures = pytest.importorskip('benchmarks.figures')
    monkeypatch.setattr(run, 'measure_apart', measure)
    monkeypatch.setattr(figures, 'SIDES', (4, 8))
    monkeypatch.setattr(figures, 'KERNEL_SIZES', (7, 11))
    small = ['--shape', 1, 4, 9, 9, '--rounds', 1]
    plot = ['--against', against, '--plot', 'drawn/sizes.png']
    done = bench('sweep', 'layer', *options, *small, *plot)
    assert [row[0] for row in rows_of(done.out)[2:]] == kinds
    picture = cv2.imread(str(tmp_path / 'drawn' / 'sizes.png'))
    assert picture.shape[0] > 400 and picture.shape[1] > 600 and picture.std() > 10


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        (['case', 'layer', '--fuse', '--mode', 'train'], 1, "takes mode 'forward', not 'train'"),
        (['case', 'layer', '--attention', 'LSKAA'], 1, "attention 'LSKAA' is unknown"),
        (['case', 'layr'], 1, 'did you mean layer?'),
        (['case', 'layer', '--kernel-size', '24'], 1, 'Nearest legal sizes: 23 and 29'),
        (['case', 'layer', '--shape', *'12345'], 1, 'four positive numbers N C H W'),
        (['case', 'layer', '--backend', 'cuda'], 1, "must be one of 'auto', 'plain'"),
        (['case', 'detector', '--config', 'none-such'], 1, "no config file 'none-such'"),
        (['case', 'evaluation'], 1, 'no folder of images'),
        (['sweep', 'backbone', *SWEEP], 1, "op, layer or block, got 'backbone'"),
        (['case', 'backbone', '--arch', 'tny', '--shape', '1', '32'], 1, 'tny'),
        (['case', 'layer', '--docs', 'x.md'], 2, 'unrecognized arguments: --docs'),
        (['suite', 'cpu', '--docs', 'absent.md', '--list'], 1, 'absent.md'),
        (['suite', 'cpu', '--docs', 'x.md', '--only', 'maps'], 1, 'leave --only out'),
        (['evaluation', '--images', '0'], 2, 'must be at least 1, got 0'),
        (['training', '--batch-size', '0'], 2, 'must be at least 1, got 0'),
        (['layers', '--rounds', '0'], 2, 'must be at least 1, got 0'),
    ],
)
def test_what_is_impossible_is_refused(arguments, status, message, bench):
    done = bench(*arguments, expect=status)
    assert message in done.err and 'Traceback' not in done.err


def test_layers_are_compared_in_a_markdown_table(bench):
    done = bench(
        *('layers', '--in-channels', 16, '--shape', 6, 8, '--memory-shape', 6, 8, '--rounds', 1)
    )
    header, _, *rows = rows_of(done.out)
    assert [row[0] for row in rows] == [*LAYERS, 'LSKA, k=23 once more']
    assert {len(row) for row in rows} == {len(header)} == {6}


def test_an_evaluation_is_timed_with_both_libraries(bench):
    pytest.importorskip('pycocotools')
    pytest.importorskip('faster_coco_eval', reason='faster-coco-eval is not installed')
    done = bench('evaluation', '--images', 3)
    rows = rows_of(done.out)[2:]
    assert [row[0] for row in rows] == ['boxes', 'masks']
    assert all(float(row[1]) >= 0 and float(row[4]) <= 1e-9 for row in rows)


def test_depthwise_convolutions_are_measured_and_all_rows_written(
    bench, tmp_path, small_copies, monkeypatch
):
    # The vertical one, and that of the FFN, for each of which the profiler starts six times.
    monkeypatch.setattr(depthwise, 'convolutions', lambda kernel_size: [((5, 1), 1)])
    options = '--arch tiny --stage 4 --batch-size 1 --dtype float32 --shape 32 48 --rounds 1'
    done = bench(
        *('depthwise', '--device', 'cpu', *options.split(), '--no-compile', '--json', 'rows.json')
    )
    assert [row[0] for row in rows_of(done.out)[2:]] == ['tiny'] * 2 * 3
    rows = json.loads((tmp_path / 'rows.json').read_text())['results']
    assert len(rows) == 2 * 3
    for row in rows:
        assert set(row['milliseconds']) == {'contiguous', 'channels_last'}
        assert min(row['milliseconds'].values()) > 0 and row['copy_milliseconds'] > 0
        assert all('conv' in name for name in row['kernels'].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_without_a_gpu_the_depthwise_benchmark_says_so(bench):
    done = bench('depthwise', expect=1)
    assert "device 'cuda' is not there: PyTorch sees 0 CUDA devices" in done.err
