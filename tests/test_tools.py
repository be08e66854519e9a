"""Every script, run as a user runs it: from another folder, on data of its own."""

import functools
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from script_runs import DEMO, TOOLS, free_port, last_log, logged, run, run_here

PYTHON_TOOLS = [
    TOOLS / 'train.py',
    TOOLS / 'test.py',
    TOOLS / 'analysis_tools' / 'get_flops.py',
    TOOLS / 'analysis_tools' / 'compare_complexity.py',
    TOOLS / 'analysis_tools' / 'receptive_field.py',
    TOOLS / 'analysis_tools' / 'robustness.py',
    TOOLS / 'analysis_tools' / 'shape_texture.py',
    TOOLS / 'analysis_tools' / 'visualize.py',
    TOOLS / 'dataset_tools' / 'check_dataset.py',
    DEMO,
]
SHELL_TOOLS = [
    TOOLS / f'{kind}_{job}.sh' for kind in ('dist', 'slurm') for job in ('train', 'test')
]
CONFIGS = Path(__file__).resolve().parent / 'configs'
DETECTOR, SEGMENTOR = CONFIGS / 'small_retinanet.py', CONFIGS / 'small_fpn.py'
BOTH = pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR], ids=lambda path: path.stem)
ITERATIONS = 2


@pytest.fixture
def run_tool(tmp_path):
    """Run a Python script in this process, in an empty folder."""
    return functools.partial(run_here, cwd=tmp_path)


@pytest.fixture(scope='session')
def user(scenes) -> Path:
    """A folder with data/digit_scenes below it, where the small configs look for it."""
    return scenes.parents[1]


@pytest.mark.parametrize('script', PYTHON_TOOLS, ids=lambda path: path.name)
def test_every_argument_is_described(script, monkeypatch):
    parsers = []

    def keep(parser, *_):
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(ArgumentParser, 'parse_args', keep)
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name='__main__')
    (parser,) = parsers
    assert parser.description
    undescribed = [action.dest for action in parser._actions if not action.help]
    assert not undescribed


@pytest.mark.parametrize('script', PYTHON_TOOLS, ids=lambda path: path.name)
def test_help_is_quick_for_it_imports_nothing_heavy(script, tmp_path):
    program = (
        'import runpy, sys\n'
        f'sys.argv = [{str(script)!r}, "--help"]\n'
        'try:\n'
        f'    runpy.run_path({str(script)!r}, run_name="__main__")\n'
        'except SystemExit as error:\n'
        '    assert not error.code\n'
        'assert not {"torch", "mmdet", "mmseg", "mmcv"} & set(sys.modules)\n'
    )
    done = run('-c', program, cwd=tmp_path)
    assert done.stdout.startswith('usage:')


@pytest.mark.parametrize('script', SHELL_TOOLS, ids=lambda path: path.name)
def test_launch_scripts_tell_their_usage(script, tmp_path):
    subprocess.run(['bash', '-n', str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert run(script, '--help', cwd=tmp_path).stdout.startswith(f'usage: {script.name} ')
    assert 'usage:' in run(script, cwd=tmp_path, expect=2).stdout
    assert 'usage:' in run(script, 'only-one', cwd=tmp_path, expect=2).stdout


def test_get_flops_prints_a_table_per_part(run_tool):
    pytest.importorskip('mmdet')
    script = TOOLS / 'analysis_tools' / 'get_flops.py'
    name = 'mask-rcnn_van-lska-tiny_fpn_1x_coco'
    out = run_tool(script, name).stdout
    assert 'MaskRCNN, one image of 800 x 1280 (H x W)' in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if ' M ' in line}
    assert list(rows)[:3] == ['backbone', 'neck', 'rpn_head']
    assert rows['total'][1] == '23.808' and float(rows['total'][3]) == pytest.approx(186.0, abs=0.1)
    assert 'without biases' in out

    kernel = 'model.backbone.attention.kernel_size=35'
    out = run_tool(script, name, '--shape', '65', '97', '--cfg-options', kernel).stdout
    assert '96 x 128 (H x W)' in out
    assert re.search(r'total +23\.821 M', out)


def test_get_flops_of_a_segmentor_takes_one_number_for_a_square(run_tool):
    pytest.importorskip('mmseg')
    script = TOOLS / 'analysis_tools' / 'get_flops.py'
    name = 'fpn_van-lska-tiny_4xb4-80k_ade20k-512x512'
    out = run_tool(script, name, '--shape', '256').stdout
    assert 'EncoderDecoder, one image of 256 x 256' in out
    total = re.search(r'total +(\S+) M +(\S+) G', out)
    assert total[1] == '7.908' and float(total[2]) == pytest.approx(25.534 / 4, abs=1e-3)


def test_get_flops_refuses_a_senseless_shape(run_tool):
    script = TOOLS / 'analysis_tools' / 'get_flops.py'
    done = run_tool(script, 'any', '--shape', '1', '2', '3', expect=2)
    assert 'one or two positive numbers' in done.stderr


def test_compare_complexity_writes_a_table_and_exact_counts(run_tool, tmp_path):
    script = TOOLS / 'analysis_tools' / 'compare_complexity.py'
    choice = ['--arch', 'tiny', '--attention', 'LKA', 'LSKA', '--kernel-size', '23', '35']
    out = run_tool(script, *choice, '--markdown', '--json', 'counts.json').stdout
    assert '| tiny | LSKA      | 4.029 / 0.833 | 4.042 / 0.838 |' in out
    records = json.loads((tmp_path / 'counts.json').read_text())
    assert records[0] == dict(
        arch='tiny', kind='LKA', kernel_size=23, params=4105800, macs=864224000
    )
    done = run_tool(script, '--kernel-size', '24', expect=1)
    assert '24' in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no-such-config'], "no config file 'no-such-config'"),
        ([DETECTOR], 'data/digit_scenes/'),
        ([DETECTOR, '--resume', 'absent.pth'], "no checkpoint file 'absent.pth'"),
        ([DETECTOR, '--cfg-options', 'train_cfgs.max_iters=3'], 'did you mean train_cfg?'),
    ],
)
def test_a_mistake_ends_training_with_one_message(arguments, message, run_tool, tmp_path):
    pytest.importorskip('mmdet')
    done = run_tool(TOOLS / 'train.py', *arguments, expect=1)
    assert done.stderr.startswith('train.py: error: ') and message in done.stderr
    assert not (tmp_path / 'work_dirs').exists()


def test_a_missing_checkpoint_ends_a_test_with_one_message(tmp_path):
    pytest.importorskip('mmdet')
    done = run_here(TOOLS / 'test.py', DETECTOR, 'absent.pth', cwd=tmp_path, expect=1)
    assert done.stderr == (
        "test.py: error: checkpoint: no checkpoint file 'absent.pth' "
        f'(relative paths start at {tmp_path})\n'
    )


@pytest.fixture(scope='session')
def trained(user) -> dict[Path, Path]:
    """Work dirs of a detector and a segmentor after a few iterations."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    for config in (DETECTOR, SEGMENTOR):
        run_here(TOOLS / 'train.py', config, cwd=user)
    return {config: user / 'work_dirs' / config.stem for config in (DETECTOR, SEGMENTOR)}


@pytest.mark.slow
@BOTH
def test_train_writes_losses_and_a_checkpoint_below_the_current_folder(config, trained):
    losses = [record['loss'] for record in logged(trained[config])]
    assert len(losses) == ITERATIONS and np.isfinite(losses).all()
    assert (trained[config] / f'iter_{ITERATIONS}.pth').is_file()


@pytest.mark.slow
@BOTH
def test_train_resumes_where_it_ended(config, trained, user, tmp_path):
    work_dir = shutil.copytree(trained[config], tmp_path / 'resumed')
    longer = ITERATIONS + 1
    settings = [
        f'train_cfg.max_iters={longer}',
        f'train_cfg.val_interval={longer}',
        f'default_hooks.checkpoint.interval={longer}',
    ]
    command = [TOOLS / 'train.py', config, '--work-dir', work_dir, '--resume']
    run_here(*command, '--cfg-options', *settings, cwd=user)
    assert [record['step'] for record in logged(work_dir)] == [*range(1, longer + 1)]
    assert (work_dir / f'iter_{longer}.pth').is_file()


@pytest.mark.slow
def test_a_detector_is_evaluated_dumped_and_drawn(trained, user, tmp_path):
    checkpoint = trained[DETECTOR] / f'iter_{ITERATIONS}.pth'
    options = ['--work-dir', tmp_path, '--out', tmp_path / 'out.pkl', '--show-dir', 'drawn']
    options.append('--tta')
    run_here(TOOLS / 'test.py', DETECTOR, checkpoint, *options, cwd=user)
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 3 and predictions[0]['pred_instances']['scores'].numel()
    assert 'coco/bbox_mAP' in last_log(tmp_path)
    assert len(list(tmp_path.glob('*/drawn/*.png'))) == 3


@pytest.mark.slow
def test_a_segmentor_is_evaluated_and_its_label_maps_kept(trained, user, tmp_path):
    checkpoint = trained[SEGMENTOR] / f'iter_{ITERATIONS}.pth'
    options = ['--work-dir', tmp_path, '--out', tmp_path / 'maps', '--show-dir', tmp_path / 'drawn']
    run_here(TOOLS / 'test.py', SEGMENTOR, checkpoint, *options, cwd=user)
    maps = sorted((tmp_path / 'maps').iterdir())
    assert len(maps) == 3
    labels = cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (128, 128) and labels.max() <= 10
    assert 'mIoU' in last_log(tmp_path)
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 3


@pytest.mark.slow
@BOTH
def test_a_fused_model_reaches_the_same_figures(config, trained, user, tmp_path):
    checkpoint = trained[config] / f'iter_{ITERATIONS}.pth'
    figures, predictions = [], []
    for name, fuse in (('plain', []), ('fused', ['--fuse'])):
        # A detector's predictions are a file, a segmentor's a folder.
        suffix = '' if 'fpn' in Path(config).stem else '.pkl'
        work_dir, out = tmp_path / name, tmp_path / f'predictions_{name}{suffix}'
        options = ['--work-dir', work_dir, '--out', out, *fuse]
        run_here(TOOLS / 'test.py', config, checkpoint, *options, cwd=user)
        assert ('the fused model is tested' in last_log(work_dir)) == bool(fuse)
        (records,) = work_dir.glob('*/*.json')
        figures.append(json.loads(records.read_text()))
        predictions.append(read_predictions(out))
    for key, value in figures[0].items():
        assert 'time' in key or figures[1][key] == pytest.approx(value, abs=1e-3), key
    for plain, fused in zip(*predictions, strict=True):
        assert np.allclose(plain, fused, atol=1e-3)


def read_predictions(out: Path) -> list[np.ndarray]:
    """Scores and boxes by image of a detector, or label maps of a segmentor."""
    if out.is_dir():
        return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(out.iterdir())]
    found = [sample['pred_instances'] for sample in pickle.loads(out.read_bytes())]
    return [np.column_stack([one['scores'], one['bboxes']]) for one in found]


@pytest.mark.slow
@BOTH
def test_two_processes_train_resume_and_test_without_a_gpu(config, user, tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    # No process group without GPUs can run SyncBN.
    norm = ['--cfg-options', 'model.backbone.norm_cfg.type=SyncBN']
    command = [TOOLS / 'dist_train.sh', config, 2, '--work-dir', tmp_path]
    done = run(*command, *norm, cwd=user, PORT=free_port())
    assert done.stdout.count('SyncBN of') == 1
    assert 'Distributed training: True' in last_log(tmp_path)
    assert 'GPU number: 2' in last_log(tmp_path)
    assert len(logged(tmp_path)) == ITERATIONS
    checkpoint = tmp_path / f'iter_{ITERATIONS}.pth'
    assert [path.name for path in tmp_path.glob('*.pth')] == [checkpoint.name]

    longer = f'train_cfg.max_iters={ITERATIONS + 1}'
    run(*command, '--resume', *norm, longer, cwd=user, PORT=free_port())
    losses = {record['step']: record['loss'] for record in logged(tmp_path)}
    assert [*losses] == [record['step'] for record in logged(tmp_path)] == [1, 2, 3]
    assert np.isfinite([*losses.values()]).all()

    out = tmp_path / 'test'
    command = [TOOLS / 'dist_test.sh', config, checkpoint, 2, '--work-dir', out]
    run(*command, '--fuse', cwd=user, PORT=free_port())
    assert '(test)' in last_log(out)
    assert re.search('coco/bbox_mAP' if config == DETECTOR else 'mIoU', last_log(out))
    assert 'the fused model is tested' in last_log(out)


@pytest.mark.slow
def test_the_checkpoint_of_another_model_is_not_evaluated(trained, user, tmp_path):
    checkpoint = trained[DETECTOR] / f'iter_{ITERATIONS}.pth'
    deeper = ['--cfg-options', 'model.bbox_head.stacked_convs=2', f'work_dir={tmp_path}']
    message = re.escape('is not of this RetinaNet: it lacks 4 weights (bbox_head.cls_convs.1.')
    with pytest.raises(ValueError, match=message):
        run_here(TOOLS / 'test.py', DETECTOR, checkpoint, *deeper, cwd=user)


@pytest.mark.slow
def test_weights_that_are_not_there_end_a_training_with_one_message(user):
    pytest.importorskip('mmdet')
    init = ('type=Pretrained', 'checkpoint=absent.pth')
    options = ['--cfg-options', *(f'model.backbone.init_cfg.{word}' for word in init)]
    done = run_here(TOOLS / 'train.py', DETECTOR, *options, cwd=user, expect=1)
    assert "train.py: error: checkpoint 'absent.pth' does not exist" in done.stderr
    assert 'Traceback' not in done.stderr


FAKE_SRUN = """#!/usr/bin/env bash
# Drops the options of srun and starts the command once per task.
echo "srun $*" >> "$SRUN_LOG"
while [ "$1" != python ]; do
    case $1 in
        -p) shift 2 ;;
        --ntasks=*) tasks=${1#--ntasks=}; shift ;;
        *) shift ;;
    esac
done
for rank in $(seq 0 $((tasks - 1))); do
    SLURM_PROCID=$rank SLURM_NTASKS=$tasks SLURM_LOCALID=$rank "$@" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""


@pytest.mark.slow
def test_slurm_scripts_start_the_job_through_srun(user, tmp_path):
    pytest.importorskip('mmseg')
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text(FAKE_SRUN)
    srun.chmod(0o755)
    work_dir = tmp_path / 'run'
    environment = dict(
        PATH=f'{srun.parent}:{Path(sys.executable).parent}:{os.environ["PATH"]}',
        SRUN_LOG=str(tmp_path / 'srun.log'),
        SRUN_ARGS='--time=10 --exclusive',
        GPUS='2',
        GPUS_PER_NODE='2',
        MASTER_PORT=free_port(),
    )
    train, test = TOOLS / 'slurm_train.sh', TOOLS / 'slurm_test.sh'
    run(train, 'part', 'job', SEGMENTOR, work_dir, cwd=user, **environment)
    assert len(logged(work_dir)) == ITERATIONS
    assert 'GPU number: 2' in last_log(work_dir)
    checkpoint = work_dir / f'iter_{ITERATIONS}.pth'
    environment.update(GPUS='1', GPUS_PER_NODE='1')
    run(
        test,
        'part',
        'job',
        SEGMENTOR,
        checkpoint,
        '--cfg-options',
        f'work_dir={work_dir}',
        cwd=user,
        **environment,
    )
    assert 'mIoU' in last_log(work_dir)
    calls = (tmp_path / 'srun.log').read_text().splitlines()
    for tasks, call in zip((2, 1), calls, strict=True):
        assert call.startswith(f'srun -p part --job-name=job --gres=gpu:{tasks} --ntasks={tasks} ')
        assert '--cpus-per-task=5 --kill-on-bad-exit=1 --time=10 --exclusive python -u' in call


@pytest.mark.slow
def test_image_demo_draws_detections_in_a_folder_of_images(trained, user, tmp_path):
    images = tmp_path / 'images'
    shutil.copytree(user / 'data' / 'digit_scenes' / 'images' / 'val', images)
    (images / 'broken.png').write_bytes(b'no image')
    write_video(images / 'clip.avi', images)
    checkpoint = trained[DETECTOR] / f'iter_{ITERATIONS}.pth'
    options = ['--score-thr', '0', '--save', 'picture', 'coco', 'yolo']
    done = run_here(DEMO, images, DETECTOR, checkpoint, *options, cwd=tmp_path, expect=1)
    assert "broken.png' cannot be read as an image" in done.stderr
    assert '1 of 5 inputs failed' in done.stderr and 'Traceback' not in done.stderr
    assert [f'[{n}/5]' in done.stdout for n in range(1, 6)] == [True] * 3 + [False, True]
    content = json.loads((tmp_path / 'outputs' / 'coco.json').read_text())
    assert len(content['images']) == 6 and content['annotations']
    assert len(list((tmp_path / 'outputs' / 'yolo').rglob('*.txt'))) == 6
    assert (tmp_path / 'outputs' / 'clip.avi').stat().st_size
    pictures = sorted((tmp_path / 'outputs').glob('*.png'))
    assert len(pictures) == 3
    for picture in pictures:
        before, after = cv2.imread(str(images / picture.name)), cv2.imread(str(picture))
        assert before.shape == after.shape and (before != after).any()


def write_video(path, images):
    """A video of the pictures in a folder."""
    from mmlska.engine.media_files import VideoFile

    with VideoFile(path, 5) as video:
        for image in sorted(images.glob('0*.png')):
            video.write(cv2.imread(str(image))[..., ::-1])


@pytest.mark.slow
def test_image_demo_draws_segments_into_a_file(trained, user, tmp_path):
    image = next((user / 'data' / 'digit_scenes' / 'images' / 'val').iterdir())
    checkpoint = trained[SEGMENTOR] / f'iter_{ITERATIONS}.pth'
    run_here(DEMO, image, SEGMENTOR, checkpoint, '--out-file', 'new/drawn.png', cwd=tmp_path)
    before, after = cv2.imread(str(image)), cv2.imread(str(tmp_path / 'new' / 'drawn.png'))
    assert before.shape == after.shape and (before != after).mean() > 0.5
    run_here(DEMO, image, SEGMENTOR, checkpoint, '--out-file', 'fused.png', '--fuse', cwd=tmp_path)
    assert (cv2.imread(str(tmp_path / 'fused.png')) != after).mean() < 1e-3
    run_here(DEMO, image.with_name('*0.png'), SEGMENTOR, checkpoint, '--save=labels', cwd=tmp_path)
    labels = cv2.imread(str(tmp_path / 'outputs' / 'labels' / '000000.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == before.shape[:2] and labels.max() < 11
    assert [file.name for file in (tmp_path / 'outputs').iterdir()] == ['labels']


@pytest.mark.slow
def test_image_demo_tells_mistakes_in_one_message(trained, user, run_tool):
    checkpoint = trained[SEGMENTOR] / f'iter_{ITERATIONS}.pth'
    image = next((user / 'data' / 'digit_scenes' / 'images' / 'val').iterdir())
    for arguments, message in (
        (['absent.jpg', SEGMENTOR, checkpoint], "no image or folder 'absent.jpg'"),
        ([image, 'absent-config', checkpoint], "no config file 'absent-config'"),
        ([image, SEGMENTOR, 'absent.pth'], "no checkpoint file 'absent.pth'"),
        ([image, DETECTOR, checkpoint], 'is not of this RetinaNet'),
        ([image, image, SEGMENTOR, checkpoint, '--out-file', 'x.png'], '--out-file is for a sing'),
        ([image, SEGMENTOR, checkpoint, '--save', 'coco'], 'coco is of a detector'),
        ([image, SEGMENTOR, checkpoint, '--out-dir', image], '--out-dir: no file can be written'),
        ([image, image, SEGMENTOR, checkpoint, '--save', 'labels'], 'several images are called'),
    ):
        done = run_tool(DEMO, *arguments, expect=1)
        assert 'image_demo.py: error: ' in done.stderr and message in done.stderr
