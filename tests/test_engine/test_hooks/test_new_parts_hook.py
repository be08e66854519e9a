"""What is told of a model that has more than its checkpoint."""

from types import SimpleNamespace

import pytest
from mmengine.registry import HOOKS
from runners import Part
from torch import nn

from mmlska.engine.hooks.new_parts_hook import compare_parts
from mmlska.models import ECA, VAN

ARCH = dict(embed_dims=[4], depths=[1], ffn_ratios=[1])


def model(**more):
    return Part(backbone=Part(conv=nn.Conv2d(1, 4, 1), norm=nn.BatchNorm2d(4), **more))


def lines_of(target, weights):
    lines = []
    logger = SimpleNamespace(info=lines.append, warning=lambda text: lines.append(f'W: {text}'))
    hook = HOOKS.build(dict(type='mmlska.NewPartsHook'))
    runner = SimpleNamespace(model=target, logger=logger)
    hook.after_load_checkpoint(runner, dict(state_dict=weights))
    return lines


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_an_added_layer_is_told_in_one_line(prefix):
    weights = {f'{prefix}{name}': value for name, value in model().state_dict().items()}
    target = model(blocks=nn.ModuleList([ECA(4), ECA(4)]), eca=ECA(4))
    (line,) = lines_of(target, weights)
    assert line.endswith('at their start: 2 (backbone.blocks, backbone.eca)')


def test_a_whole_checkpoint_is_no_news():
    weights = model().state_dict()
    # As checkpoints from before PyTorch 0.4 lack them.
    del weights['backbone.norm.num_batches_tracked']
    assert lines_of(model(), weights) == []


def test_a_weight_that_lacks_beside_others_is_warned_of():
    weights = model().state_dict()
    del weights['backbone.norm.bias']
    (line,) = lines_of(model(), weights)
    assert line.startswith('W: ') and line.endswith(': 1 (backbone.norm.bias)')


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_all_weights_of_another_shape_are_named_with_both(prefix):
    heads = [nn.ModuleList([nn.Linear(2, classes) for _ in range(4)]) for classes in (3, 5)]
    weights = {f'{prefix}heads.{key}': value for key, value in heads[0].state_dict().items()}
    (line,) = lines_of(Part(heads=heads[1]), weights)
    assert line.startswith('W: of another shape in the checkpoint, hence at their start: 8 (')
    for key in heads[1].state_dict():
        bias = key.endswith('bias')
        shapes = 'checkpoint (3,), model (5,)' if bias else 'checkpoint (3, 2), model (5, 2)'
        assert f'heads.{key} ({shapes})' in line


def test_a_backbone_of_ours_tells_of_itself():
    van = VAN(ARCH, dict(type='LSKA', kernel_size=7), out_indices=0)
    target = Part(backbone=van, head=nn.Conv2d(4, 1, 1))
    assert compare_parts(target, ['patch_embed1.projection.weight']) == (['head'], [])
