"""The scripts mean what the stock scripts of mmdet and mmseg mean by the same command line."""

import contextlib
import importlib.util
import os
import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmlska.engine import launch
from mmlska.engine.config import find_config

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TOOLS = REPOSITORY / 'tools'
NAMES = {
    'mmdet': 'mask-rcnn_van-lska-tiny_fpn_1x_coco',
    'mmseg': 'fpn_van-lska-tiny_4xb4-80k_ade20k-512x512',
}


@pytest.fixture
def started(monkeypatch):
    """Configs that runners were built from; nothing is built."""
    configs = []

    def from_cfg(cfg):
        configs.append(cfg.to_dict())
        return MagicMock()

    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(Runner, 'from_cfg', from_cfg)
    monkeypatch.setattr(launch, 'check_data', lambda *_: None)
    monkeypatch.setattr(launch, 'check_content', lambda *_: None)
    monkeypatch.setattr(launch, 'make_folder', lambda *_: None)
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    return configs


@pytest.fixture
def checkpoint(tmp_path) -> str:
    path = tmp_path / 'epoch_1.pth'
    path.touch()
    return str(path)


def start(script: Path, arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, 'argv', [str(script), *arguments])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name='__main__')


def stock_script(task: str, name: str) -> Path:
    spec = importlib.util.find_spec(task)
    if spec is None:
        pytest.skip(f'{task} is not installed')
    return Path(spec.origin).parent / '.mim' / 'tools' / name


def compare_with_stock(task, name, arguments, started, monkeypatch, config=None):
    path = str(find_config(config or NAMES[task]))
    for script in (TOOLS / name, stock_script(task, name)):
        start(script, [path, *arguments], monkeypatch)
    assert len(started) == 2, 'one of the scripts did not come as far as building a runner'
    ours, stock = started
    for cfg in started:
        # Nobody reads it once the model is wrapped, and mmseg's script writes into it.
        cfg.pop('tta_model', None)
    assert ours == stock


@pytest.mark.parametrize('task', NAMES)
@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['--work-dir', 'elsewhere', '--amp'],
        ['--resume', '--cfg-options', 'train_dataloader.batch_size=3', 'randomness.seed=1'],
        ['--cfg-options', 'train_dataloader.dataset.pipeline.2.scale=(640,400)'],
    ],
)
def test_train_configures_as_the_stock_script(task, arguments, started, monkeypatch):
    compare_with_stock(task, 'train.py', arguments, started, monkeypatch)


def test_detection_options_of_the_stock_script(started, monkeypatch, checkpoint):
    arguments = ['--auto-scale-lr', '--resume', checkpoint]
    compare_with_stock('mmdet', 'train.py', arguments, started, monkeypatch)
    assert started[0]['auto_scale_lr']['enable'] and started[0]['load_from'] == checkpoint


@pytest.mark.parametrize('task', NAMES)
@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['--work-dir', 'elsewhere', '--cfg-options', 'test_dataloader.num_workers=0'],
        ['--show-dir', 'drawn'],
        ['--show', '--wait-time', '0.5'],
    ],
)
def test_test_configures_as_the_stock_script(task, arguments, started, monkeypatch, checkpoint):
    compare_with_stock(task, 'test.py', [checkpoint, *arguments], started, monkeypatch)


@pytest.mark.parametrize(
    ('task', 'config'),
    [('mmdet', 'retinanet_van-lska-tiny_fpn_1x_coco'), ('mmseg', NAMES['mmseg'])],
)
def test_augmentation_at_test_time_is_that_of_the_stock_script(
    task, config, started, monkeypatch, checkpoint
):
    """A config with masks is refused, where the stock script stops at the first image."""
    compare_with_stock(task, 'test.py', [checkpoint, '--tta'], started, monkeypatch, config)


def test_a_detector_dumps_its_predictions(monkeypatch):
    pytest.importorskip('mmdet')
    runner = MagicMock()
    runner.test_evaluator.metrics = []
    monkeypatch.setattr(launch, 'build_runner', lambda _: runner)
    launch.build_test_runner(Config(dict(default_scope='mmdet')), 'predictions.pkl')
    assert [metric.out_file_path for metric in runner.test_evaluator.metrics] == ['predictions.pkl']


def test_a_segmentor_writes_its_predictions_through_its_metrics():
    for metrics in (dict(type='IoUMetric'), [dict(type='IoUMetric')]):
        cfg = Config(dict(default_scope='mmseg', test_evaluator=metrics))
        launch.set_prediction_output(cfg, 'maps')
        first = cfg.test_evaluator[0] if isinstance(metrics, list) else cfg.test_evaluator
        assert first.output_dir == 'maps'


@pytest.mark.parametrize('out', ['maps.pkl', 'maps.json', __file__])
def test_a_segmentor_does_not_write_into_a_file(out):
    cfg = Config(dict(default_scope='mmseg', test_evaluator=dict(type='IoUMetric')))
    with pytest.raises(ValueError, match='--out of a segmentor is a folder of label maps, got'):
        launch.set_prediction_output(cfg, out)


@pytest.mark.parametrize(
    ('origin', 'advice'),
    [('--resume', 'a file in it; --work-dir FOLDER --resume'), ('load_from', 'a file in it$')],
)
def test_a_folder_is_no_checkpoint(tmp_path, origin, advice):
    with pytest.raises(FileNotFoundError, match=f'{origin}: .* is a folder, name {advice}'):
        launch.check_checkpoint(str(tmp_path), origin)


def test_a_detector_dumps_into_a_pickle_file_only():
    with pytest.raises(ValueError, match=r"a \.pkl file, got 'maps'"):
        launch.set_prediction_output(Config(dict(default_scope='mmdet')), 'maps')


def test_other_tasks_have_no_prediction_output():
    with pytest.raises(ValueError, match='--out is for detectors and segmentors, not for mmpretr'):
        launch.set_prediction_output(Config(dict(default_scope='mmpretrain')), 'maps')


@pytest.mark.parametrize('resume', ['absent.pth', None])
def test_a_missing_checkpoint_is_named(resume, monkeypatch):
    monkeypatch.setattr(launch, 'load_config', lambda *_: Config(dict(load_from='absent.pth')))
    origin = '--resume' if resume else 'load_from'
    with pytest.raises(FileNotFoundError, match=f"{origin}: no checkpoint file 'absent.pth'"):
        launch.prepare_training('any.py', resume=resume)


@pytest.mark.parametrize('prepare', ['training', 'testing'])
def test_a_work_dir_that_cannot_be_made_is_named(prepare, checkpoint, monkeypatch):
    monkeypatch.setattr(launch, 'load_config', lambda *_: Config())
    more = [checkpoint] if prepare == 'testing' else []
    with pytest.raises(OSError, match='--work-dir: no file can be written into'):
        getattr(launch, f'prepare_{prepare}')('any.py', *more, work_dir=checkpoint)


@pytest.mark.parametrize(
    ('resume', 'load_from', 'start_from'), [('auto', None, 'coco.pth'), ('a.pth', 'a.pth', None)]
)
def test_resuming_keeps_where_a_new_training_starts(resume, load_from, start_from):
    cfg = Config(dict(load_from='coco.pth'))
    launch.set_resume(cfg, resume)
    assert cfg.resume and cfg.load_from == load_from
    assert cfg.get('start_from') == start_from


def test_a_checkpoint_may_lie_in_the_home_folder(checkpoint, monkeypatch):
    monkeypatch.setenv('HOME', os.path.dirname(checkpoint))
    launch.check_checkpoint('~/epoch_1.pth', 'load_from')
    launch.check_checkpoint(f'file://{checkpoint}', 'load_from')
    with pytest.raises(FileNotFoundError, match=r'no checkpoint file .~.epoch_2'):
        launch.check_checkpoint('~/epoch_2.pth', 'load_from')


def test_an_address_is_no_missing_checkpoint():
    launch.check_checkpoint('https://example.org/van.pth', 'load_from')


def test_mixed_precision_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match='--amp needs a GPU'):
        launch.enable_amp(Config(dict(optim_wrapper=dict(type='OptimWrapper'))))


def test_mixed_precision_does_not_replace_another_wrapper(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    with pytest.raises(ValueError, match='the config has ApexOptimWrapper'):
        launch.enable_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))


def test_scaling_the_rate_needs_the_batch_size_it_is_meant_for():
    with pytest.raises(ValueError, match='base_batch_size'):
        launch.enable_auto_scale_lr(Config(dict(auto_scale_lr=dict(enable=False))))


def test_drawing_needs_its_hook():
    with pytest.raises(ValueError, match='visualization'):
        launch.enable_drawing(Config(dict(default_hooks={})), True, None, 2)


def test_a_segmentor_needs_its_test_time_augmentation_in_the_config():
    cfg = Config(dict(default_scope='mmseg', test_dataloader=dict(dataset={}), tta_model={}))
    with pytest.raises(ValueError, match='--tta needs tta_pipeline in the config'):
        launch.enable_tta(cfg)


def test_the_work_dir_is_the_argument_then_the_config_then_the_name():
    cfg = Config({})
    launch.set_work_dir(cfg, 'configs/some_name.py', None)
    assert cfg.work_dir == './work_dirs/some_name'
    launch.set_work_dir(cfg, 'configs/other.py', None)
    assert cfg.work_dir == './work_dirs/some_name'
    launch.set_work_dir(cfg, 'configs/other.py', 'given')
    assert cfg.work_dir == 'given'


def masked(metric='bbox', kind='CocoMetric', roi_head='StandardRoIHead') -> Config:
    head = dict(type=roi_head, bbox_head=dict(), mask_head=dict(), mask_roi_extractor=dict())
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(type='MaskRCNN', roi_head=head),
            test_dataloader=dict(dataset=dict(pipeline=[dict(type='PackDetInputs')])),
            test_evaluator=dict(type=kind, metric=metric),
        )
    )


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (masked(['bbox', 'segm']), r'CocoMetric wants masks .*test_evaluator\.metric=bbox'),
        (masked(kind='CocoPanopticMetric'), 'CocoPanopticMetric wants masks'),
        (masked(roi_head='HybridTaskCascadeRoIHead'), 'a MaskRCNN predicts both at once'),
    ],
)
def test_masks_are_not_augmented_at_test_time(cfg, message):
    with pytest.raises(ValueError, match=message):
        launch.enable_tta(cfg)


def test_boxes_of_a_mask_head_are_augmented_without_it():
    cfg = masked()
    launch.enable_tta(cfg)
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.model.module.roi_head.mask_head is None
