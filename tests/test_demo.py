"""The demo runs from data to picture: here with a few scenes and iterations."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from script_runs import REPOSITORY

pytest.importorskip('sklearn', reason='the digits are those of scikit-learn')
pytest.importorskip('skimage', reason='the photographs are those of scikit-image')
pytest.importorskip('mmcv._ext', reason='mmcv was built without its compiled operators')

SCRIPT = REPOSITORY / 'demo' / 'train_demo.py'
FEW = ['--max-iters', '4', '--num-train', '8', '--num-val', '4']


@pytest.fixture
def demo(tmp_path, monkeypatch, capsys):
    """Run the demo in this process, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    # So long PyTorch waits for each worker that the garbage collector ends.
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.5)
    import train_demo

    def run(*arguments, expect=0):
        status = 0
        try:
            train_demo.main(arguments)
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        assert status == expect, printed.out + printed.err
        return printed

    return run


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Data made before, which a demo finds."""
    from mmlska.datasets import make_digit_scenes

    folder = tmp_path_factory.mktemp('scenes')
    make_digit_scenes(folder, num_train=8, num_val=4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'folder', 'metrics', 'library'),
    [
        ([], 'demo_detection', ['box AP50', 'box AP', 'mask AP50', 'mask AP'], 'mmdet'),
        (['--task', 'retinanet'], 'demo_retinanet', ['box AP50', 'box AP'], 'mmdet'),
        (['--task', 'segmentation'], 'demo_segmentation', ['mIoU', 'pixel accuracy'], 'mmseg'),
        (
            ['--backbone', 'ghostnetv2', '--attention', 'eca'],
            'demo_detection_ghostnetv2_eca',
            ['box AP50', 'mask AP'],
            'mmdet',
        ),
        (
            [
                '--task=segmentation',
                '--backbone=container-light',
                '--attention=context-aggregation',
            ],
            'demo_segmentation_container-light_context-aggregation',
            ['mIoU'],
            'mmseg',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_demo_trains_evaluates_and_draws(
    tmp_path, demo, scenes, arguments, folder, metrics, library
):
    pytest.importorskip(library)
    # The first one makes its data.
    data = ['--data-root', str(scenes)] if arguments else []
    printed = demo(*arguments, *FEW, *data).out
    assert (tmp_path / 'data' / 'digit_scenes').exists() != bool(arguments)
    for metric in metrics:
        before, after = re.search(rf'^ *{metric} +(\S+) +(\S+)$', printed, re.M).groups()
        assert 0 <= float(before) <= 1
        assert 0 <= float(after) <= 1
    # A newcomer sees progress; the log is in the work dir.
    assert len(printed.splitlines()) < 30
    assert re.search(r'iteration \d/4  loss \d', printed)
    work_dir = tmp_path / 'work_dirs' / folder
    assert 'Iter(train)' in (work_dir / 'train.log').read_text()
    picture = cv2.imread(str(work_dir / 'predictions.png'))
    assert picture.std() > 20
    checkpoint = re.search(r'^checkpoint +(\S+)$', printed, re.M).group(1)
    assert (tmp_path / checkpoint).is_file()


@pytest.mark.slow
def test_the_training_is_the_one_of_the_stock_tool(tmp_path, demo):
    """The figures before it change none of its random numbers."""
    pytest.importorskip('mmdet')
    from mmengine.runner import CheckpointLoader
    from script_runs import TOOLS, run

    printed = demo(*FEW, '--seed', '3', '--data-root', 'digits,here').out
    (command,) = re.findall(r'^ +python (\S+) (\S+) --work-dir (\S+)$', printed, re.M)
    assert (tmp_path / command[0]).resolve() == TOOLS / 'train.py'
    run(TOOLS / 'train.py', command[1], '--work-dir', 'stock', cwd=tmp_path)
    states = [
        CheckpointLoader.load_checkpoint(str(folder / 'iter_4.pth'), 'cpu')['state_dict']
        for folder in (tmp_path / command[2], tmp_path / 'stock')
    ]
    for name, weight in states[0].items():
        assert (weight == states[1][name]).all(), name


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--task', 'pose'], "invalid choice: 'pose'"),
        (['--backbone', 'vgg'], "invalid choice: 'vgg'"),
        (['--max-iters', '0'], '--max-iters must be at least 1, got 0'),
    ],
)
def test_wrong_arguments_are_refused(demo, arguments, message):
    assert message in demo(*arguments, expect=2).err


@pytest.mark.slow
def test_a_failing_training_shows_the_end_of_its_log(tmp_path, demo):
    pytest.importorskip('mmdet')
    (tmp_path / 'w').mkdir()
    # A file where the training wants its folder.
    (tmp_path / 'w' / 'train').write_text('')
    message = demo(*FEW, '--work-dir', 'w', expect=1).err
    assert 'FileExistsError' in message or 'NotADirectoryError' in message
    assert 'these were the last lines of w/train.log' in message


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(tmp_path, number):
    pytest.importorskip('mmdet')
    few = ['--num-train', '8', '--num-val', '4']
    command = [sys.executable, str(SCRIPT), *few, '--work-dir', str(tmp_path / 'w')]
    demo = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: 'Iter(train)' in read(tmp_path / 'w' / 'train.log'), 'the training')
    assert len(processes_in(tmp_path)) > 1
    demo.send_signal(number)
    demo.communicate(timeout=60)
    assert demo.returncode != 0
    wait_for(lambda: not processes_in(tmp_path), 'the end of all processes')


def read(path):
    return path.read_text() if path.is_file() else ''


def processes_in(folder):
    """Processes of that working directory, from Linux's own table."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if Path(os.readlink(process / 'cwd')) == folder.resolve():
                found.append(process.name)
    return found


def wait_for(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f'{what} did not come in {seconds} s'
        time.sleep(0.2)


def test_files_of_others_are_not_overwritten(tmp_path, demo):
    data = tmp_path / 'data'
    data.mkdir()
    (data / 'thesis.txt').write_text('mine')
    message = demo('--data-root', 'data', expect=1).err
    assert 'holds files that are not digit scenes' in message
    assert (data / 'thesis.txt').read_text() == 'mine'
