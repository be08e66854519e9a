from pathlib import Path

import pytest
from mmengine.config import Config

from mmlska.engine import config
from mmlska.engine.config import check_options, current_value, find_config, load_config

CONFIG = """
batch_size = 2
train_dataloader = dict(
    batch_size=batch_size,
    persistent_workers=True,
    dataset=dict(pipeline=[dict(type='Load'), dict(type='Resize', scale=(1333, 800))]))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4))
visualizer = dict(type='Visualizer')
"""


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / 'own.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture
def cfg(config_file) -> Config:
    return Config.fromfile(config_file)


def test_a_config_is_found_by_path_and_by_bare_name(config_file):
    assert find_config(config_file) == config_file
    name = 'retinanet_van-lska-tiny_fpn_1x_coco'
    assert find_config(name) == find_config(f'{name}.py')
    assert find_config(name).is_file() and find_config(name).stem == name


def test_an_own_file_goes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'retinanet_van-lska-tiny_fpn_1x_coco.py'
    Path(name).write_text(CONFIG)
    assert find_config(name) == Path(name)


def test_a_missing_config_is_named_with_the_nearest_shipped_one():
    with pytest.raises(FileNotFoundError) as error:
        find_config('configs/retinanet_van-lska-tny_fpn_1x_coco.py')
    assert 'configs/retinanet_van-lska-tny_fpn_1x_coco.py' in str(error.value)
    assert 'did you mean retinanet_van-lska-tiny_fpn_1x_coco?' in str(error.value)


def test_options_reach_nested_settings_and_list_elements(config_file):
    cfg = load_config(
        config_file,
        {
            'optim_wrapper.optimizer.lr': 0.1,
            'train_dataloader.dataset.pipeline.1.scale': (640, 400),
            'visualizer': None,
            'randomness.seed': 3,
        },
    )
    assert cfg.optim_wrapper.optimizer.lr == 0.1
    assert cfg.train_dataloader.dataset.pipeline[1].scale == (640, 400)
    assert cfg.visualizer is None
    assert cfg.randomness.seed == 3


def test_a_config_for_an_absent_library_says_so(tmp_path):
    path = tmp_path / 'absent.py'
    path.write_text("default_scope = 'mmabsent'")
    with pytest.raises(ImportError, match='mmabsent is not installed'):
        load_config(path)


def test_a_misspelt_setting_is_refused_with_the_nearest_one(cfg):
    with pytest.raises(ValueError, match=r"no 'train_datalaoder'; did you mean train_dataloader\?"):
        check_options(cfg, {'train_datalaoder.batch_size': 4})


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('optim_wrapper.optimizer.lr', '1e-4x', r'takes a number \(now 0.0001\), got .1e-4x'),
        ('train_dataloader.batch_size', 'two', 'takes a number'),
        ('train_dataloader.persistent_workers', 'no', 'takes true or false'),
        ('optim_wrapper', 0.1, r'a group of settings \(optimizer\).*optim_wrapper.NAME=VALUE'),
    ],
)
def test_a_value_of_another_kind_is_refused(cfg, key, value, message):
    with pytest.raises(TypeError, match=message):
        check_options(cfg, {key: value})


def test_a_variable_of_the_file_draws_a_warning(cfg, monkeypatch):
    messages = []
    monkeypatch.setattr(config, 'print_log', lambda message, **_: messages.append(message))
    check_options(cfg, {'optim_wrapper.optimizer.lr': 1, 'batch_size': 4})
    assert len(messages) == 1 and 'batch_size is a variable' in messages[0]


def test_the_current_value_of_an_absent_key_is_none(cfg):
    assert current_value(cfg, 'train_dataloader.dataset.pipeline.1.type') == 'Resize'
    assert current_value(cfg, 'train_dataloader.dataset.pipeline.7.type') is None
    assert current_value(cfg, 'train_dataloader.batch_size.more') is None


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('activation_checkpointing', ['backbone']),
        ('efficient_conv_bn_eval', '[backbone]'),
        ('compile', True),
        ('sync_bn', 'torch'),
        ('strategy.type', 'DDPStrategy'),
        ('model_wrapper_cfg.find_unused_parameters', True),
        ('optim_wrapper.loss_scale', 'dynamic'),
    ],
)
def test_what_mmengine_reads_is_accepted(cfg, key, value, monkeypatch):
    messages = []
    monkeypatch.setattr(config, 'print_log', lambda message, **_: messages.append(message))
    cfg.optim_wrapper.loss_scale = 512.0
    check_options(cfg, {key: value})
    assert not messages


def model_class(library):
    return type('Detector', (type('Base', (), dict(__module__=f'{library}.models')),), {})


@pytest.mark.parametrize(
    ('settings', 'task'),
    [
        (dict(default_scope='mmseg'), 'mmseg'),
        (dict(model=dict(type=model_class('mmdet'))), 'mmdet'),
        (dict(model=dict(type=model_class('mmseg')), default_scope='mmengine'), 'mmseg'),
        (dict(model=dict(type=model_class('other')), default_scope='mmengine'), 'mmengine'),
        (dict(model=dict(type='mmlska.LSKA')), None),
        (dict(), None),
    ],
)
def test_the_task_is_told_by_the_scope_or_the_class_of_the_model(settings, task):
    assert config.task_of(Config(settings)) == task


def test_a_pure_python_config_gets_the_scope_of_its_model(tmp_path):
    pytest.importorskip('mmdet')
    path = tmp_path / 'pure.py'
    path.write_text('from mmdet.models import RetinaNet\n\nmodel = dict(type=RetinaNet)\n')
    assert load_config(path).default_scope == 'mmdet'
