"""The paper's own configs on real photographs, from training to pictures.

Only paths, batch size, image scale and the length of the run are overridden, all on the command
line, so that a few minutes on two CPU cores suffice.
"""

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from script_runs import DEMO, TOOLS, free_port, last_log, logged, run, run_here

from mmlska.engine.config import find_config

pytestmark = pytest.mark.slow


class Job(NamedTuple):
    """A config with the data that it is tried on."""

    config: str
    data: str
    metric: str

    @property
    def library(self) -> str:
        return 'mmseg' if self.config.startswith('fpn') else 'mmdet'

    @property
    def unit(self) -> str:
        """What the config counts its training in."""
        return 'iter' if self.library == 'mmseg' else 'epoch'


MASK_RCNN = Job('mask-rcnn_van-lska-tiny_fpn_1x_coco', 'coco_mini', 'coco/segm_mAP')
RETINANET = Job('retinanet_van-lska-tiny_fpn_1x_coco', 'coco_mini', 'coco/bbox_mAP')
COCO_FPN = Job('fpn_van-lska-tiny_4xb4-80k_ade20k-512x512', 'coco_semantic_mini', 'mIoU')
ADE_FPN = Job('fpn_van-lska-tiny_4xb4-80k_ade20k-512x512', 'ade20k_micro', 'mIoU')
JOBS = [MASK_RCNN, RETINANET, COCO_FPN, ADE_FPN]
ONE_PER_CONFIG = JOBS[:3]

LENGTH = {'epoch': 2, 'iter': 8}
LONGER = {'epoch': 3, 'iter': 10}
TRAIN_IMAGES = {'epoch': 3, 'iter': 2}
VAL_IMAGES = 2


def name_of(job: Job) -> str:
    return f'{job.config.split("_")[0]}-{job.data}'


@pytest.fixture
def data(shared, request) -> Path:
    return shared / 'data'


def detection_options(root: Path, length: int, train_images: int) -> list[str]:
    scale = '(256,160)'
    return [
        f'train_cfg.max_epochs={length}',
        'train_dataloader.batch_size=1',
        f'train_dataloader.dataset.data_root={root}/',
        'train_dataloader.dataset.ann_file=annotations/instances_train.json',
        'train_dataloader.dataset.data_prefix.img=images/train/',
        f'train_dataloader.dataset.indices={train_images}',
        f'train_dataloader.dataset.pipeline.2.scale={scale}',
        # The paper warms up for longer than this run takes.
        'param_scheduler.0.end=2',
        *[
            option
            for split in ('val', 'test')
            for option in (
                f'{split}_dataloader.dataset.data_root={root}/',
                f'{split}_dataloader.dataset.ann_file=annotations/instances_val.json',
                f'{split}_dataloader.dataset.data_prefix.img=images/val/',
                f'{split}_dataloader.dataset.pipeline.1.scale={scale}',
                f'{split}_evaluator.ann_file={root}/annotations/instances_val.json',
            )
        ],
    ]


def segmentation_options(root: Path, length: int, train_images: int) -> list[str]:
    scale = '(192,128)'
    return [
        f'train_cfg.max_iters={length}',
        f'train_cfg.val_interval={length}',
        f'default_hooks.checkpoint.interval={length}',
        'train_dataloader.batch_size=2',
        f'train_dataloader.dataset.data_root={root}',
        f'train_dataloader.dataset.indices={train_images}',
        # Whole images: the loss is an average over all pixels of a crop, unlabelled ones included.
        f'train_dataloader.dataset.pipeline.2.scale={scale}',
        'train_dataloader.dataset.pipeline.2.ratio_range=(1.0,1.0)',
        'train_dataloader.dataset.pipeline.3.crop_size=(128,192)',
        'model.data_preprocessor.size=(128,192)',
        *[
            option
            for split in ('val', 'test')
            for option in (
                f'{split}_dataloader.dataset.data_root={root}',
                f'{split}_dataloader.dataset.pipeline.1.scale={scale}',
            )
        ],
    ]


def options(job: Job, data: Path, length: dict[str, int], processes: int = 1) -> list[str]:
    """Overrides for a run over a few images, the same in each run."""
    if not (data / job.data).is_dir():
        pytest.skip(f'{data / job.data} is absent')
    pytest.importorskip(job.library)
    root = data / job.data
    images = TRAIN_IMAGES[job.unit] * processes
    own = (
        segmentation_options(root, length['iter'], images)
        if job.library == 'mmseg'
        else detection_options(root, length['epoch'], images)
    )
    loaders = [
        option
        for split in ('train', 'val', 'test')
        for option in (
            f'{split}_dataloader.num_workers=0',
            f'{split}_dataloader.persistent_workers=False',
        )
    ]
    few = [f'{split}_dataloader.dataset.indices={VAL_IMAGES}' for split in ('val', 'test')]
    return [
        '--cfg-options',
        *own,
        *loaders,
        *few,
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]


def check_losses(records: list[dict]) -> None:
    losses = np.array([record['loss'] for record in records])
    assert np.isfinite(losses).all()
    third = len(losses) // 3
    assert losses[-third:].mean() < losses[:third].mean(), losses


def iterations(job: Job, length: dict[str, int]) -> int:
    return length['iter'] if job.library == 'mmseg' else length['epoch'] * TRAIN_IMAGES['epoch']


def checkpoint_of(job: Job, work_dir: Path, length: dict[str, int]) -> Path:
    return work_dir / f'{job.unit}_{length[job.unit]}.pth'


@pytest.fixture(scope='module')
def trainings(tmp_path_factory):
    """Work dirs of `tools/train.py`, each job trained once, for all tests of this module."""
    done = {}

    def train(job: Job, data: Path) -> Path:
        if job not in done:
            overrides = options(job, data, LENGTH)
            work_dir = tmp_path_factory.mktemp(name_of(job))
            run_here(
                TOOLS / 'train.py', job.config, '--work-dir', work_dir, *overrides, cwd=work_dir
            )
            done[job] = work_dir
        return done[job]

    return train


@pytest.mark.parametrize('job', JOBS, ids=name_of)
def test_training_lowers_the_loss_saves_and_evaluates(job, data, trainings):
    work_dir = trainings(job, data)
    records = logged(work_dir)
    assert [record['step'] for record in records] == [*range(1, iterations(job, LENGTH) + 1)]
    check_losses(records)
    assert checkpoint_of(job, work_dir, LENGTH).is_file()
    assert '(val)' in last_log(work_dir)


@pytest.mark.parametrize('job', JOBS, ids=name_of)
def test_resumed_training_goes_on_at_the_next_iteration(job, data, trainings, tmp_path):
    work_dir = shutil.copytree(trainings(job, data), tmp_path / 'resumed')
    before = logged(work_dir)
    overrides = options(job, data, LONGER)
    command = [TOOLS / 'train.py', job.config, '--work-dir', work_dir, '--resume', *overrides]
    run_here(*command, cwd=tmp_path)
    after = logged(work_dir)
    assert after[: len(before)] == before
    assert [record['step'] for record in after] == [*range(1, iterations(job, LONGER) + 1)]
    check_losses(after)
    assert checkpoint_of(job, work_dir, LONGER).is_file()


@pytest.mark.parametrize('job', JOBS, ids=name_of)
def test_evaluation_prints_its_metric(job, data, trainings, tmp_path):
    checkpoint = checkpoint_of(job, trainings(job, data), LENGTH)
    overrides = options(job, data, LENGTH)
    if job.library == 'mmdet':
        # Barely trained, it is sure of nothing.
        key = 'rcnn.score_thr' if job is MASK_RCNN else 'score_thr'
        overrides.append(f'model.test_cfg.{key}=0.0')
    command = [TOOLS / 'test.py', job.config, checkpoint, '--work-dir', tmp_path, *overrides]
    run_here(*command, cwd=tmp_path)
    assert job.metric in last_log(tmp_path)


@pytest.mark.parametrize('job', [MASK_RCNN, COCO_FPN], ids=name_of)
def test_pictures_are_drawn(job, data, trainings, tmp_path):
    checkpoint = checkpoint_of(job, trainings(job, data), LENGTH)
    folder = 'images/val' if job is MASK_RCNN else 'images/validation'
    images = sorted((data / job.data / folder).iterdir())[:2]
    arguments = [*images, job.config, checkpoint, '--out-dir', tmp_path, '--score-thr', '0.02']
    if job is MASK_RCNN:
        arguments += ['--cfg-options', 'model.test_cfg.rcnn.score_thr=0.02']
    run_here(DEMO, *arguments, cwd=tmp_path)
    for image in images:
        before, after = cv2.imread(str(image)), cv2.imread(str(tmp_path / image.name))
        assert before.shape == after.shape
        # Compression alone changes a picture by less.
        assert np.abs(before.astype(int) - after).mean() > 1


# The one with two stages and masks; test_tools.py has small ones of the other two for everybody.
@pytest.mark.parametrize('job', [MASK_RCNN], ids=name_of)
def test_two_processes_train_resume_and_evaluate(job, data, tmp_path):
    work_dir = tmp_path / 'run'
    train = [TOOLS / 'dist_train.sh', job.config, 2, '--work-dir', work_dir]
    run(*train, *options(job, data, LENGTH, processes=2), cwd=tmp_path, PORT=free_port())
    assert 'GPU number: 2' in last_log(work_dir)
    records = logged(work_dir)
    assert [record['step'] for record in records] == [*range(1, iterations(job, LENGTH) + 1)]
    check_losses(records)
    checkpoint = checkpoint_of(job, work_dir, LENGTH)
    assert checkpoint.is_file()

    longer = options(job, data, LONGER, processes=2)
    run(*train, '--resume', *longer, cwd=tmp_path, PORT=free_port())
    steps = [record['step'] for record in logged(work_dir)]
    assert steps == [*range(1, iterations(job, LONGER) + 1)]

    test = [TOOLS / 'dist_test.sh', job.config, checkpoint, 2, '--work-dir', tmp_path / 'test']
    run(*test, *options(job, data, LENGTH), cwd=tmp_path, PORT=free_port())
    assert '(test)' in last_log(tmp_path / 'test')


@pytest.mark.parametrize('job', ONE_PER_CONFIG, ids=name_of)
def test_the_stock_script_trains_exactly_so(job, data, trainings, tmp_path):
    """Same config, same seed: the losses of mmdet's and mmseg's own script are ours."""
    ours = logged(trainings(job, data))
    package = Path(importlib.util.find_spec(job.library).origin).parent
    script = package / '.mim' / 'tools' / 'train.py'
    config = find_config(job.config).resolve()
    overrides = options(job, data, LENGTH)
    run(script, config, '--work-dir', tmp_path, *overrides, cwd=tmp_path)
    stock = logged(tmp_path)
    check_losses(stock)
    assert [r['loss'] for r in stock] == pytest.approx([r['loss'] for r in ours], rel=1e-5)
    assert checkpoint_of(job, tmp_path, LENGTH).is_file()


def test_mim_trains_a_config_by_its_path(data, tmp_path):
    if importlib.util.find_spec('mim') is None:
        pytest.skip('mim is not installed')
    config = find_config(RETINANET.config).resolve()
    overrides = options(RETINANET, data, {'epoch': 1})
    arguments = ['--gpus', '0', '--launcher', 'none', '--work-dir', tmp_path, *overrides]
    # mim knows a package by its distribution: mmdet, or onedl-mmdetection.
    distribution = importlib.metadata.packages_distributions()['mmdet'][0]
    run('-m', 'mim', 'train', distribution, config, *arguments, cwd=tmp_path)
    assert len(logged(tmp_path)) == TRAIN_IMAGES['epoch']
