import pytest
from mmengine.config import Config

from mmlska.engine import distributed
from mmlska.engine.distributed import RANK_VARIABLES, fit_config_to_cpu, prepare_launcher


@pytest.fixture
def cfg() -> Config:
    norm = dict(type='SyncBN', requires_grad=True)
    heads = [dict(norm_cfg=norm), dict(norm_cfg=dict(type='GN', num_groups=4))]
    return Config(dict(model=dict(backbone=dict(norm_cfg=norm), heads=heads), sync_bn='torch'))


@pytest.mark.parametrize('launcher', list(RANK_VARIABLES))
def test_a_process_that_the_launcher_did_not_start_is_told_so(cfg, launcher, monkeypatch):
    for name in RANK_VARIABLES[launcher]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=f'--launcher {launcher} .* is not set'):
        prepare_launcher(cfg, launcher)


def test_without_a_launcher_nothing_but_its_name_changes(cfg):
    before = cfg.to_dict()
    prepare_launcher(cfg, 'none')
    assert cfg.to_dict() == {**before, 'launcher': 'none'}


def test_on_the_cpu_sync_bn_gives_way_everywhere(cfg):
    fit_config_to_cpu(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model.heads[1].norm_cfg.type == 'GN'
    assert 'sync_bn' not in cfg


def test_the_replacement_is_told_in_one_line(cfg, monkeypatch):
    messages = []
    monkeypatch.setattr(distributed, 'print_log', lambda message, **_: messages.append(message))
    fit_config_to_cpu(cfg)
    assert len(messages) == 1 and 'SyncBN' in messages[0] and '2 layer settings' in messages[0]


def test_the_wrapper_gets_no_device_ids_and_keeps_its_settings(cfg):
    cfg.find_unused_parameters = True
    fit_config_to_cpu(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', static_graph=True)
    fit_config_to_cpu(cfg)
    assert cfg.model_wrapper_cfg.static_graph and cfg.model_wrapper_cfg.device_ids is None


def test_with_a_gpu_the_config_is_left_to_mmengine(cfg, monkeypatch):
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    for name in RANK_VARIABLES['pytorch']:
        monkeypatch.setenv(name, '0')
    prepare_launcher(cfg, 'pytorch')
    assert 'model_wrapper_cfg' not in cfg and cfg.model.backbone.norm_cfg.type == 'SyncBN'
