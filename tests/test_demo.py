"""The demo runs from data to picture: here with a few scenes and iterations."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from script_runs import REPOSITORY, TOOLS, run, run_here

pytest.importorskip('sklearn', reason='the digits are those of scikit-learn')
pytest.importorskip('skimage', reason='the photographs are those of scikit-image')

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
    skip_without(library)
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
    assert re.search(r'iteration \d/4  loss \d+\.\d+  \d+:\d\d left', printed)
    work_dir = tmp_path / 'work_dirs' / folder
    assert 'Iter(train)' in (work_dir / 'train.log').read_text()
    picture = cv2.imread(str(work_dir / 'predictions.png'))
    assert picture.std() > 20
    checkpoint = re.search(r'^checkpoint +(\S+)$', printed, re.M).group(1)
    assert (tmp_path / checkpoint).is_file()
    if not arguments:
        for command in commands_to_go_on_with(printed):
            run_here(*shlex.split(command)[1:], cwd=tmp_path)
        check_what_they_left(work_dir)


def skip_without(library):
    pytest.importorskip(library)
    if library == 'mmdet':
        pytest.importorskip('mmcv._ext', reason='mmcv was built without its compiled operators')


def commands_to_go_on_with(printed):
    found = re.findall(r'^    (\S.*)$', printed.partition('Three commands to go on with')[2], re.M)
    assert len(found) == 3
    return found


def check_what_they_left(work_dir):
    assert len(list((work_dir / 'pictures').iterdir())) == 4
    assert list((work_dir / 'evaluation').glob('*/*.json'))
    assert (work_dir / 'longer' / 'iter_4.pth').is_file()


# Runs in every process that Python starts with its folder on the path.
WITHOUT_OPERATORS = """
import importlib.machinery, sys


class Others(importlib.machinery.PathFinder):
    finders = list(sys.meta_path)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in ('mmcv._ext', 'mmdet'):
            return None
        specs = (finder.find_spec(name, path, target) for finder in cls.finders)
        return next((spec for spec in specs if spec is not None), None)


sys.meta_path[:] = [Others]
"""


@pytest.fixture
def lite(tmp_path):
    """Environment of processes that find neither mmcv's operators nor mmdet."""
    (tmp_path / 'lite').mkdir()
    (tmp_path / 'lite' / 'sitecustomize.py').write_text(WITHOUT_OPERATORS)
    path = os.pathsep.join([str(tmp_path / 'lite'), str(REPOSITORY)])
    first = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    return dict(PYTHONPATH=path, PATH=first, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='-1')


@pytest.mark.slow
def test_segmentation_needs_no_operators(tmp_path, lite, scenes):
    """From the training to the commands at its end, as the shell runs what is printed."""
    pytest.importorskip('mmseg')
    arguments = ('--task', 'segmentation', *FEW, '--data-root', scenes)
    printed = run(SCRIPT, *arguments, cwd=tmp_path, **lite).stdout
    assert re.search(r'^ +mIoU +0\.\d+ +0\.\d+$', printed, re.M)
    for command in commands_to_go_on_with(printed):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env={**os.environ, **lite})
    check_what_they_left(tmp_path / 'work_dirs' / 'demo_segmentation')


def test_a_detector_without_operators_is_refused_before_anything_is_made(
    tmp_path, demo, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    message = demo(*FEW, expect=1).err
    assert "detectors need mmcv's compiled operators (import of mmcv._ext halted" in message
    assert 'TASK=segmentation' in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_training_is_the_one_of_the_stock_tool(tmp_path, demo):
    """The figures before it change none of its random numbers."""
    skip_without('mmdet')
    from mmengine.runner import CheckpointLoader

    printed = demo(*FEW, '--seed', '3', '--data-root', 'digits,here').out
    (command,) = re.findall(r'^      \S+ (\S+) (\S+) --work-dir (\S+)$', printed, re.M)
    assert (tmp_path / command[0]).resolve() == TOOLS / 'train.py'
    run_here(TOOLS / 'train.py', command[1], '--work-dir', 'stock', cwd=tmp_path)
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
    skip_without('mmdet')
    (tmp_path / 'w').mkdir()
    # A file where the training wants its folder.
    (tmp_path / 'w' / 'train').write_text('')
    message = demo(*FEW, '--work-dir', 'w', expect=1).err
    assert 'FileExistsError' in message or 'NotADirectoryError' in message
    assert 'these were the last lines of w/train.log' in message


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(tmp_path, number):
    skip_without('mmdet')
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
