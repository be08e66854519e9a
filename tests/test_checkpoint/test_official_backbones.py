"""The official weights of GhostNetV2 and CONTAINER-Light load whole or not at all."""

from functools import cache

import pytest
import torch
from mmengine.runner import load_checkpoint
from routes import ROUTES, Detector, fill, log_of, same
from safetensors.torch import save_file
from torch import nn

from mmlska.checkpoint import CheckpointError, load_from_local
from mmlska.checkpoint.naming import is_backbone
from mmlska.models import VAN, ContainerLight, GhostNetV2

NANO = dict(embed_dims=[4, 6, 8, 12], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2], num_heads=4)


def ghost(**options):
    return GhostNetV2(0.1, **options).eval()


def official_ghost(model):
    """The model's weights as the official code writes them, with its classifier."""
    state = dict(model.state_dict())
    if 'blocks.9.0.conv.weight' not in state:
        last = nn.Conv2d(model.blocks[-1][-1].ghost2.out_channels, 96, 1, bias=False)
        norm = nn.BatchNorm2d(96)
        state['blocks.9.0.conv.weight'] = last.weight.detach()
        state |= {f'blocks.9.0.bn1.{key}': value for key, value in norm.state_dict().items()}
    for name, shape in (('conv_head', (1280, 96, 1, 1)), ('classifier', (10, 1280))):
        state |= {f'{name}.weight': torch.rand(shape), f'{name}.bias': torch.rand(shape[0])}
    return state


def container(**options):
    return ContainerLight(NANO, **options).eval()


def official_container(model):
    state = {k.replace('projection.', 'proj.'): v for k, v in model.state_dict().items()}
    return state | {'head.weight': torch.rand(10, 12), 'head.bias': torch.rand(10)}


FAMILIES = [(ghost, official_ghost), (container, official_container)]
every_family = pytest.mark.parametrize(('build', 'official'), FAMILIES, ids=['ghost', 'container'])


def trained(build, **options):
    return fill(build(**options))


@cache
def trained_once(build, official):
    source = trained(build)
    return source, official(source)


@every_family
@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
def test_loads_whole(build, official, route, wrapper, prefix, tmp_path):
    (source, weights), target = trained_once(build, official), build()
    weights = {f'{prefix}{key}': value for key, value in weights.items()}
    route(target, weights if wrapper is None else {wrapper: weights, 'epoch': 1}, tmp_path)
    assert same(source, target)


def test_the_official_key_list_of_ghostnetv2_loads_whole(golden):
    keys = golden('f_ghost/keys_w1.0.json')
    weights = {key: torch.rand(shape) if shape else torch.tensor(7) for key, shape in keys.items()}
    for options in (dict(), dict(output_stride=16), dict(with_last_conv=True)):
        model = GhostNetV2(1.0, **options)
        lines = log_of(lambda model=model: model.load_state_dict(weights))
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        assert len([line for line in lines if 'classification head' in line]) == 1
        assert len([line for line in lines if 'left out' in line]) == 1


@every_family
def test_the_head_is_left_out_in_one_line(build, official):
    source, target = trained(build), build()
    lines = log_of(lambda: target.load_state_dict(official(source)))
    assert len([line for line in lines if 'classification head' in line]) == 1
    assert len([line for line in lines if 'left out' in line]) == 1


@every_family
def test_safetensors(build, official, tmp_path):
    source, alone, inside = trained(build), build(), build()
    save_file(official(source), tmp_path / 'weights.safetensors')
    load_checkpoint(alone, str(tmp_path / 'weights.safetensors'))
    load_checkpoint(Detector(inside), str(tmp_path / 'weights.safetensors'))
    assert same(source, alone)
    assert same(source, inside)


@every_family
def test_a_bare_file_in_a_detector_raises_no_false_alarm(build, official, tmp_path):
    torch.save(official(trained(build)), tmp_path / 'weights.pth')
    detector = Detector(build())
    lines = log_of(
        lambda: load_checkpoint(detector, str(tmp_path / 'weights.pth'), logger='current')
    )
    assert not [line for line in lines if 'unexpected key' in line]
    assert [line for line in lines if 'missing keys in source state_dict: neck.weight' in line]


@every_family
@pytest.mark.parametrize('out_indices', [(0,), (1, 2)])
def test_stages_that_are_not_built_are_left_out_in_one_line(build, official, out_indices):
    source, target = trained(build), build(out_indices=out_indices)
    lines = log_of(lambda: target.load_state_dict(official(source)))
    assert same(target, source)
    assert len([line for line in lines if 'stages that are not built' in line]) == 1


# All or nothing


def check_refused(model, weights, *messages):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        model.load_state_dict(weights)
    for message in messages:
        assert message in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_width():
    with torch.device('meta'):
        wide, narrow = GhostNetV2(1.3), GhostNetV2(1.0)
    with pytest.raises(CheckpointError) as caught:
        narrow.load_state_dict(wide.state_dict())
    for message in (
        'the checkpoint holds GhostNetV2 1.3x (channels 32, 52, 144, 208)',
        'the model is built for GhostNetV2 1.0x (channels 24, 40, 112, 160)',
        'Build the model with width=1.3',
    ):
        assert message in str(caught.value)


def test_an_unpublished_width_is_told_by_its_channels():
    weights = GhostNetV2(0.4).state_dict()
    check_refused(ghost(), weights, 'GhostNetV2 0.4x (channels 12, 16, 44, 64)', 'width=0.4')


def test_another_container():
    other = ContainerLight(dict(NANO, depths=[1, 2, 2, 1], num_heads=[1, 1, 2, 4]))
    check_refused(
        container(),
        official_container(other),
        'holds a CONTAINER with embed_dims=[4, 6, 8, 12], depths=[1, 2, 2, 1]',
        'mixing in stages 1, 2, 3, 4, the model is built for',
        'mixing in stages 4',
        'arch=dict(embed_dims=[4, 6, 8, 12], depths=[1, 2, 2, 1]',
    )


@every_family
def test_a_missing_a_superfluous_and_a_misshaped_weight_are_named(build, official):
    source = trained(build)
    key = next(key for key in source.state_dict() if key.endswith('norm2.bias') or 'bn_dw.b' in key)
    weights = official(source)
    del weights[key]
    check_refused(build(), weights, f'1 missing in the checkpoint: {key}')
    check_refused(build(), {**official(source), 'extra.weight': torch.ones(1)}, 'extra.weight')
    weights[key] = torch.ones(3)
    check_refused(build(), weights, f'{key} (checkpoint (3,), model')


@every_family
def test_the_weights_of_each_other_are_refused(build, official):
    van = VAN(
        dict(embed_dims=[4, 4, 4, 4], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2]),
        dict(type='LSKA', kernel_size=7),
    )
    others = [official_container(container()), official_ghost(ghost()), van.state_dict()]
    name = type(build()).__name__
    for weights in others:
        if set(weights) != set(official(build())):
            check_refused(build(), weights, f'the checkpoint is of no {name}')
    check_refused(van, official(build()), 'VAN loads none of these weights')


# Files of other models stay as they are

RELATIVES = {
    # timm and the official code: GhostNet has the names of GhostNetV2, but no attention.
    'GhostNet': [
        'conv_stem.weight',
        'bn1.weight',
        'blocks.0.0.ghost1.primary_conv.0.weight',
        'blocks.0.0.ghost1.cheap_operation.0.weight',
        'blocks.3.0.se.conv_reduce.weight',
        'blocks.9.0.conv.weight',
        'conv_head.weight',
        'classifier.weight',
    ],
    # timm: GhostNetV3 has the attention, and branches to be merged.
    'GhostNetV3': [
        'conv_stem.weight',
        'blocks.2.0.ghost1.short_conv.0.weight',
        'blocks.2.0.ghost1.primary_rpr_conv.0.conv.weight',
        'blocks.2.0.ghost1.primary_rpr_scale.conv.weight',
        'classifier.weight',
    ],
    'MobileNetV3': [
        'conv_stem.weight',
        'bn1.weight',
        'blocks.0.0.conv_dw.weight',
        'classifier.bias',
    ],
    # UniFormer, which began with CONTAINER's code.
    'UniFormer': [
        'patch_embed1.proj.weight',
        'patch_embed1.norm.weight',
        'blocks1.0.pos_embed.weight',
        'blocks1.0.conv1.weight',
        'blocks1.0.attn.weight',
        'blocks3.0.attn.qkv.weight',
        'blocks3.0.attn.proj.weight',
        'norm.weight',
        'head.weight',
    ],
    'the convolutional half of UniFormer': [
        'patch_embed1.proj.weight',
        'blocks1.0.pos_embed.weight',
        'blocks1.0.conv1.weight',
        'blocks1.0.attn.weight',
        'norm.weight',
    ],
    'DeiT': [
        'cls_token',
        'pos_embed',
        'patch_embed.proj.weight',
        'blocks.0.norm1.weight',
        'blocks.0.attn.qkv.weight',
        'blocks.0.mlp.fc1.weight',
        'norm.weight',
        'head.weight',
    ],
    "mmpretrain's DeiT": [
        'backbone.cls_token',
        'backbone.patch_embed.projection.weight',
        'backbone.layers.0.ln1.weight',
        'backbone.layers.0.attn.qkv.weight',
        'head.layers.head.weight',
    ],
}


@pytest.mark.parametrize('name', RELATIVES)
def test_checkpoints_of_near_relatives_pass_unchanged(name, tmp_path):
    weights = {key: torch.ones(1) for key in RELATIVES[name]}
    assert not is_backbone(list(weights))
    torch.save({'state_dict': weights, 'meta': {'epoch': 1}}, tmp_path / 'other.pth')
    read = load_from_local(str(tmp_path / 'other.pth'))
    assert list(read['state_dict']) == list(weights)
    assert read['meta'] == {'epoch': 1}


@every_family
def test_bare_files_are_recognised(build, official):
    assert is_backbone(list(official(build())))
    assert is_backbone(list(build().state_dict()))
    assert not is_backbone([*official(build()), 'neck.weight'])
