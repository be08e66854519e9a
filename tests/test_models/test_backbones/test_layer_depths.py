"""Depths of layers, by the contract of mmpretrain's constructor of optimizers."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from mmlska.models import VAN, ContainerLight, GhostNetV2

ARCH = dict(embed_dims=[8, 16, 24, 32], depths=[1, 2, 3, 1], ffn_ratios=[2] * 4)
PLUGINS = [dict(cfg=dict(type='ECA'), position='after_stage')]
BACKBONES = {
    'van': lambda **options: VAN(ARCH, plugins=PLUGINS, **options),
    'container': lambda **options: ContainerLight(dict(ARCH, num_heads=4), **options),
    'ghostnetv2': lambda **options: GhostNetV2(0.25, **options),
}
every_backbone = pytest.mark.parametrize('build', BACKBONES.values(), ids=BACKBONES)


def first_gradients(model, block):
    """Names of the parameters that a map has met when it leaves a block."""
    kept = []
    handle = block.register_forward_hook(lambda module, args, out: kept.append(out))
    model(torch.rand(1, 3, 64, 64))
    handle.remove()
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(kept[0].sum(), list(named.values()), allow_unused=True)
    return {name for name, grad in zip(named, gradients, strict=True) if grad is not None}


@every_backbone
def test_a_deeper_layer_is_met_later(build):
    model = build().eval()
    depths = {name: model.get_layer_depth(name)[0] for name, _ in model.named_parameters()}
    blocks = [block for i in range(4) for block in model.stage_blocks(i)]
    assert sorted(set(depths.values())) == list(range(len(blocks) + 1))
    for number, block in enumerate(blocks, start=1):
        own = {id(parameter) for parameter in block.parameters()}
        names = {name for name, p in model.named_parameters() if id(p) in own}
        assert {depths[name] for name in names} == {number}
        met = first_gradients(model, block)
        assert all(depths[name] <= number for name in met)
        later = {name for name in depths if name not in met}
        assert all(depths[name] >= number for name in later)


@pytest.mark.parametrize(
    ('name', 'depth'),
    [
        ('patch_embed1.projection.weight', 0),
        ('patch_embed1.norm.bias', 0),
        ('blocks1.0.attn.proj_1.weight', 1),
        ('norm1.weight', 1),
        ('after_stage1.eca.conv.weight', 1),
        ('patch_embed2.projection.weight', 2),
        ('blocks2.0.layer_scale_1', 2),
        ('blocks2.1.mlp.fc1.weight', 3),
        ('norm2.weight', 3),
        ('blocks4.0.norm1.weight', 7),
        ('norm4.bias', 7),
    ],
)
def test_the_layers_of_van(name, depth):
    # The stem, seven blocks, and what follows the backbone.
    assert BACKBONES['van']().get_layer_depth(name) == (depth, 9)


@every_backbone
def test_stages_that_are_not_built_count_for_nothing(build):
    model = build(out_indices=(1,))
    number = sum(len(model.stage_blocks(i)) for i in range(2))
    assert model.get_layer_depth('head.weight', prefix='backbone.') == (number + 1, number + 2)


@every_backbone
def test_a_prefix_and_what_follows_the_backbone(build):
    model = build()
    name = next(name for name, _ in model.named_parameters())
    _, number = model.get_layer_depth(name)
    assert model.get_layer_depth(f'backbone.{name}', prefix='backbone.') == (0, number)
    assert model.get_layer_depth('head.fc.weight', prefix='backbone.') == (number - 1, number)
    with pytest.raises(ValueError, match=r"no parameter 'backbone\.nothing' \(prefix"):
        model.get_layer_depth('backbone.nothing', prefix='backbone.')


def test_a_parameter_outside_of_the_stages_counts_as_what_follows():
    model = BACKBONES['van']()
    model.extra = nn.Conv2d(32, 8, 1)
    assert model.get_layer_depth('extra.weight') == (8, 9)


class Classifier(nn.Module):
    """What mmpretrain's ImageClassifier tells its constructor."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(32, 2)

    def get_layer_depth(self, param_name):
        return self.backbone.get_layer_depth(param_name, 'backbone.')


def rates_by_contract(model, base_lr, decay):
    """The rule of mmpretrain: every layer before the last learns by one factor less."""
    return {
        name: base_lr * decay ** (number - depth - 1)
        for name, p in model.named_parameters()
        if p.requires_grad
        for depth, number in [model.get_layer_depth(name)]
    }


@every_backbone
def test_the_head_learns_at_the_full_rate_and_the_stem_slowest(build):
    model = Classifier(build(frozen_stages=-1))
    rates = rates_by_contract(model, 1e-3, 0.5)
    layers = defaultdict(set)
    for name, rate in rates.items():
        layers[rate].add(name)
    assert layers[1e-3] == {'head.weight', 'head.bias'}
    number = model.get_layer_depth('head.weight')[1]
    assert min(layers) == pytest.approx(1e-3 * 0.5 ** (number - 1))
    assert len(layers) == number


@every_backbone
def test_the_constructor_of_mmpretrain_takes_them(build):
    optimizers = pytest.importorskip('mmpretrain.engine.optimizers')
    model = Classifier(build())
    constructor = optimizers.LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='SGD', lr=1e-3, weight_decay=0.1)),
        dict(layer_decay_rate=0.5),
    )
    groups = constructor(model).optimizer.param_groups
    rates = {group['param_name']: group['lr'] for group in groups}
    assert rates == pytest.approx(rates_by_contract(model, 1e-3, 0.5))
