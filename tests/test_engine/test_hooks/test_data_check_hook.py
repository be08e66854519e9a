import json
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmlska.engine import launch
from mmlska.engine.data_check import check_content


@pytest.fixture
def cfg(tmp_path, monkeypatch) -> Config:
    """A config of two detection sets; the one of validation lacks ``iscrowd``."""
    pytest.importorskip('mmdet')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def dataset(name, **more):
        entry = dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 30, 40], area=1200, **more)
        content = dict(
            images=[dict(id=1, file_name='a.jpg', width=64, height=64)],
            categories=[dict(id=1, name='screw')],
            annotations=[entry],
        )
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
        path = str(tmp_path / f'{name}.json')
        return dict(type='CocoDataset', ann_file=path, metainfo=dict(classes=('screw',)))

    return Config(
        dict(
            default_scope='mmdet',
            train_cfg=dict(max_epochs=1),
            val_cfg=dict(),
            train_dataloader=dict(dataset=dataset('train', iscrowd=0)),
            val_dataloader=dict(dataset=dataset('val')),
            val_evaluator=dict(type='CocoMetric', metric='bbox'),
            default_hooks=dict(data_check=dict(type='mmlska.DataCheckHook'), timer=dict(type='A')),
            custom_hooks=[dict(type='mmlska.DataCheckHook'), dict(type='B')],
        )
    )


def test_what_fails_at_the_first_evaluation_is_told_before_the_training(cfg, tmp_path):
    check_content(cfg, ('train',))
    hook = HOOKS.build(cfg.default_hooks.data_check)
    with pytest.raises(ValueError, match=r"val\.json.*lacks 'iscrowd'") as error:
        hook.before_train(SimpleNamespace(cfg=cfg))
    for words in ('annotation 1', 'check_dataset.py CONFIG', '--fix FOLDER', '--no-data-check'):
        assert words in str(error.value)


def test_a_split_without_a_loop_is_left_out(cfg):
    cfg.val_cfg = None
    check_content(cfg, ('train', 'val'))


def test_training_checks_unless_it_is_told_not_to(cfg, monkeypatch):
    monkeypatch.setattr(launch, 'load_config', lambda *_: cfg)
    with pytest.raises(ValueError, match=r'lacks .iscrowd'):
        launch.prepare_training('any.py', work_dir='out')
    ready = launch.prepare_training('any.py', work_dir='out', data_check=False)
    assert ready.default_hooks == dict(data_check=None, timer=dict(type='A'))
    assert ready.custom_hooks == [dict(type='B')]


def test_one_process_of_a_job_checks(cfg, monkeypatch):
    monkeypatch.setattr(launch, 'load_config', lambda *_: cfg)
    monkeypatch.setattr(launch, 'prepare_launcher', lambda *_: None)
    monkeypatch.setenv('RANK', '1')
    assert launch.prepare_training('any.py', work_dir='out') is cfg
