"""The hooks that every shipped config has, whatever a user adds to it."""

import copy

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner

from mmlska.shipped import shipped_configs

CHECKS = {
    'channel_check': 'mmlska.ChannelCheckHook',
    'num_class_check': 'mmlska.NumClassCheckHook',
    'layout_check': 'mmlska.LayoutCheckHook',
    'plugin_check': 'mmlska.PluginCheckHook',
    'random_weights': 'mmlska.RandomWeightsHook',
    'added_neck': 'mmlska.AddedNeckHook',
    'new_parts': 'mmlska.NewPartsHook',
    'measured_table': 'mmlska.MeasuredTableHook',
}
CONFIGS = shipped_configs()


def read(path):
    for data, base in dict(coco='mmdet', dota='mmrotate').items():
        if data in str(path):
            pytest.importorskip(base)
    return Config.fromfile(path)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_has_every_check(name):
    cfg = read(CONFIGS[name])
    found = {key: cfg.default_hooks.get(key, {}).get('type') for key in CHECKS}
    assert found == CHECKS
    if cfg.default_scope == 'mmseg':
        assert cfg.data_preprocessor == cfg.model.data_preprocessor


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_van-lska-tiny_fpn_1x_coco',
        'rtmdet_tiny-lska_8xb32-300e_coco',
        'fpn_van-lska-tiny_4xb4-80k_ade20k-512x512',
    ],
)
def test_hooks_of_a_user_leave_the_checks_where_they_are(name, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(
        f'_base_ = {str(CONFIGS[name])!r}\n'
        "custom_hooks = [dict(type='EmptyCacheHook')]\n"
        'default_hooks = dict(logger=dict(interval=7))\n'
    )
    cfg = read(own)
    assert [hook.type for hook in cfg.custom_hooks] == ['EmptyCacheHook']
    assert cfg.default_hooks.logger.interval == 7
    runner = Runner.__new__(Runner)
    runner._hooks = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for key in CHECKS:
            runner.register_hook(copy.deepcopy(cfg.default_hooks[key]))
    kinds = [type(hook) for hook in runner.hooks]
    assert all(HOOKS.get(kind) in kinds for kind in CHECKS.values())


def test_a_check_is_left_out_by_its_name(tmp_path):
    own = tmp_path / 'own.py'
    base = CONFIGS['mask-rcnn_van-lska-tiny_fpn_1x_coco']
    own.write_text(f"_base_ = {str(base)!r}\n_base_.default_hooks.pop('channel_check')\n")
    hooks = read(own).default_hooks
    assert 'channel_check' not in hooks and 'plugin_check' in hooks


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'ade20k' in name][:2])
def test_the_preprocessor_stands_where_the_cam_tool_of_mmseg_reads_it(name):
    cfg = read(CONFIGS[name])
    means, stds = cfg.data_preprocessor['mean'], cfg.data_preprocessor['std']
    assert [x / 255 for x in means] == pytest.approx([0.485, 0.456, 0.406], abs=1e-3)
    assert [x / 255 for x in stds] == pytest.approx([0.229, 0.224, 0.225], abs=1e-3)
