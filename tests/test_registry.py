import subprocess
import sys

import pytest
from mmcv.cnn import build_plugin_layer
from mmengine.registry import MODELS, DefaultScope, init_default_scope

LIGHT = 'import sys, mmlska, mmlska.registry; print(sorted(m for m in sys.modules if m in {names}))'


def test_the_package_and_the_registry_import_no_heavy_library():
    names = {'mmcv', 'mmdet', 'mmseg', 'mmlska.models', 'mmlska.checkpoint'}
    command = [sys.executable, '-c', LIGHT.format(names=names)]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == '[]'


def test_types_resolve_without_an_import_of_ours_and_import_no_other_library():
    code = (
        'from mmengine.registry import MODELS;'
        "print(type(MODELS.build(dict(type='mmlska.LSKA', in_channels=4))).__name__);"
    )
    code += LIGHT.format(names={'mmlska.models', 'mmdet', 'mmseg', 'mmpretrain'})
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.splitlines() == ['LSKA', "['mmlska.models']"]


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('name', ['LSKA', 'mmlska.LSKA'])
def test_nested_types_are_found_in_every_default_scope(scope, name):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        van = MODELS.build(
            dict(
                type='mmlska.VAN',
                arch=dict(embed_dims=[8], depths=[1], ffn_ratios=[2]),
                out_indices=(0,),
                attention=dict(type=name, kernel_size=11),
            )
        )
    assert type(van.blocks1[0].attn.spatial_gating_unit).__name__ == 'LSKA'


@pytest.mark.parametrize('name', ['LKA', 'LSKA', 'LKATrivial', 'LSKATrivial'])
def test_layers_are_plugins_of_mmcv(name):
    init_default_scope('mmengine')
    plugin_name, layer = build_plugin_layer(dict(type=f'mmlska.{name}'), '_1', in_channels=6)
    assert plugin_name == f'{type(layer)._abbr_}_1'
    assert type(layer).__name__ == name
