import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from script_runs import TOOLS, new_managers, run_here

pytest.importorskip('imagecorruptions')

from mmlska.analysis.corrupted_evaluation import (
    CLEAN,
    Cell,
    Settings,
    Subject,
    cells_of,
    evaluate_cell,
    evaluate_cells,
    insert_corruption,
    keep_some_images,
    main_figures,
    robustness_of,
    task_of_subjects,
)
from mmlska.engine.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DETECTOR, SEGMENTOR = CONFIGS / 'small_retinanet.py', CONFIGS / 'small_fpn.py'
TOOL = TOOLS / 'analysis_tools' / 'robustness.py'


@pytest.fixture(scope='module')
def user(scenes):
    """A folder with data/digit_scenes below it, where the small configs look for it."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    return scenes.parents[1]


@pytest.fixture(scope='module')
def weights(user):
    """Random weights of both small models."""
    found = {}
    for config in (DETECTOR, SEGMENTOR):
        cfg = Config.fromfile(config)
        torch.manual_seed(0)
        with new_managers(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        found[config] = user / f'{config.stem}.pth'
        torch.save(dict(state_dict=model.state_dict()), found[config])
    return found


def subject_of(config, weights):
    return Subject(config.stem, str(config), str(weights[config]))


def test_the_clean_cell_comes_first_and_severities_in_their_order():
    assert cells_of(['fog', 'snow'], [3, 1, 3]) == [
        CLEAN,
        *(('fog', 1), ('fog', 3), ('snow', 1), ('snow', 3)),
    ]


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR], ids=lambda path: path.stem)
def test_the_corruption_stands_behind_the_loading_step(config):
    cfg = load_config(config)
    before = list(cfg.test_dataloader.dataset.pipeline)
    insert_corruption(cfg, Cell('fog', 2), seed=3)
    step = dict(
        type='mmlska.CorruptImage', corruption='fog', severity=2, channel_order='bgr', seed=3
    )
    assert cfg.test_dataloader.dataset.pipeline == [before[0], step, *before[1:]]


def test_a_classifier_gets_its_crop_corrupted_as_imagenet_c_does():
    names = ['LoadImageFromFile', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    dataset = dict(type='ImageNet', pipeline=[dict(type=name) for name in names])
    cfg = Config(dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset)))
    insert_corruption(cfg, Cell('fog', 1))
    steps = [step.type for step in cfg.test_dataloader.dataset.pipeline]
    assert steps == [*names[:3], 'mmlska.CorruptImage', names[3]]


def test_a_set_without_images_or_of_several_parts_is_told():
    cfg = load_config(DETECTOR)
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadAnnotations')]
    with pytest.raises(ValueError, match='loads no image: its steps are LoadAnnotations'):
        insert_corruption(cfg, Cell('fog', 1))
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[])
    with pytest.raises(ValueError, match='ConcatDataset has no pipeline of its own'):
        insert_corruption(cfg, Cell('fog', 1))
    with pytest.raises(ValueError, match='no test set'):
        insert_corruption(Config(dict(test_dataloader=None)), Cell('fog', 1))


def test_fewer_images_are_fewer_for_the_metric_too(user, tmp_path, monkeypatch):
    monkeypatch.chdir(user)
    cfg = load_config(DETECTOR)
    keep_some_images(cfg, 2, tmp_path)
    (path,) = {cfg.test_dataloader.dataset.ann_file, cfg.test_evaluator.ann_file}
    content = json.loads(Path(path).read_text())
    assert [image['id'] for image in content['images']] == [0, 1]
    assert {a['image_id'] for a in content['annotations']} == {0, 1}
    cfg = load_config(SEGMENTOR)
    keep_some_images(cfg, 2, tmp_path)
    assert cfg.test_dataloader.dataset.indices == 2
    with pytest.raises(ValueError, match='must be positive, got 0'):
        keep_some_images(cfg, 0, tmp_path)
    cfg = load_config(DETECTOR)
    cfg.test_evaluator.ann_file = 'other.json'
    with pytest.raises(ValueError, match=r"its metric 'other\.json'"):
        keep_some_images(cfg, 2, tmp_path)


def test_severity_0_gives_the_figures_of_the_stock_evaluation(user, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(user)
    subject = subject_of(SEGMENTOR, weights)
    figures = []
    for cell in (CLEAN, Cell('fog', 0), Cell('fog', 5)):
        with new_managers():
            figures.append(evaluate_cell(subject, cell, Settings(), tmp_path))
    run_here(
        TOOLS / 'test.py', SEGMENTOR, weights[SEGMENTOR], '--work-dir', tmp_path / 's', cwd=user
    )
    (records,) = (tmp_path / 's').glob('*/*.json')
    stock = json.loads(records.read_text())
    for key in ('mIoU', 'aAcc', 'mAcc'):
        assert figures[0][key] == figures[1][key] == pytest.approx(stock[key])
    assert 0 < figures[0]['mIoU'] != figures[2]['mIoU']


def test_a_detector_that_finds_nothing_under_a_corruption_has_an_ap_of_0():
    figures = {CLEAN: {'coco/bbox_mAP': 0.5}, Cell('fog', 1): {}, Cell('fog', 2): {'time': 1.0}}
    found = robustness_of('a', 'mmdet', 'coco/bbox_mAP', figures)
    assert (found.clean, found.cells) == (50.0, dict(fog={1: 0.0, 2: 0.0}))
    with pytest.raises(ValueError, match=r"fog 1: no figure 'mIoU'; it has none"):
        robustness_of('a', 'mmseg', 'mIoU', {CLEAN: dict(mIoU=40.0), Cell('fog', 1): {}})
    with pytest.raises(ValueError, match='clean 0: no figure'):
        robustness_of('a', 'mmdet', 'coco/bbox_mAP', {CLEAN: {}})


@pytest.mark.parametrize(
    ('task', 'figures', 'expected'),
    [
        (
            'mmdet',
            ['coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'time'],
            ['coco/bbox_mAP', 'coco/segm_mAP'],
        ),
        ('mmdet', ['pascal_voc/mAP', 'pascal_voc/AP50'], ['pascal_voc/mAP']),
        ('mmdet', ['lvis/bbox_AP', 'lvis/bbox_APr'], ['lvis/bbox_AP']),
        ('mmdet', ['coco_panoptic/PQ', 'coco_panoptic/SQ'], ['coco_panoptic/PQ']),
        ('mmseg', ['aAcc', 'mIoU', 'mAcc'], ['mIoU']),
        ('mmpretrain', ['accuracy/top1', 'accuracy/top5'], ['accuracy/top1']),
    ],
)
def test_the_main_figures_are_found(task, figures, expected):
    assert main_figures(task, dict.fromkeys(figures, 0.5)) == expected


def test_a_missing_main_figure_is_told():
    with pytest.raises(ValueError, match='It gave time'):
        main_figures('mmdet', dict(time=1.0))
    with pytest.raises(ValueError, match='unknown for mmpose; name it: PCK'):
        main_figures('mmpose', dict(PCK=1.0))


def test_models_of_one_task_and_of_different_names_are_compared(tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    subjects = [Subject('a', str(DETECTOR), 'a.pth'), Subject('b', str(SEGMENTOR), 'b.pth')]
    with pytest.raises(ValueError, match='not a: mmdet, b: mmseg'):
        task_of_subjects(subjects)
    with pytest.raises(ValueError, match='differ, got a, a'):
        evaluate_cells([subjects[0]] * 2, [CLEAN], tmp_path)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_evaluates_no_cell_twice(user, weights, tmp_path):
    out = tmp_path / 'out'
    command = [TOOL, SEGMENTOR, weights[SEGMENTOR], '--out-dir', out, '--severities', '1']
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=user,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES='-1'),
    )
    while len(finished := list(out.glob('cells/*/*_?.json'))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    left = set(out.glob('cells/*/*_?.json'))
    names = {path.stem.rpartition('_')[0] for path in finished} - {'clean'}
    times = {path: path.stat().st_mtime_ns for path in finished}

    chosen = ['--corruptions', *names, 'spatter', 'saturate', '--jobs', '2']
    done = run_here(*command, *chosen, cwd=user)
    assert f'{len(finished)} of {len(names) + 3} cells are finished' in done.stderr
    assert times == {path: path.stat().st_mtime_ns for path in times}
    # The process that evaluated has ended with the one that was killed: nobody else wrote.
    new = {path.stem for path in set(out.glob('cells/*/*_?.json')) - left}
    assert new == {'spatter_1', 'saturate_1'}
    clean = json.loads(next(out.glob('cells/*/clean_0.json')).read_text())
    written = json.loads((out / 'robustness.json').read_text())
    assert written['figures']['mIoU'][0]['clean'] == clean['mIoU']
    assert '| saturate' in (out / 'robustness.md').read_text()
    assert (out / 'curves_mIoU.png').is_file()
