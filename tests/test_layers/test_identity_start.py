"""Inserted layers change nothing, learn from there, and take no weight decay unless asked."""

import pytest
import torch
from cheap_layers import LAYERS
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmlska.deploy import fuse
from mmlska.models import VAN, ContextAggregation, IdentityStart

INNER = {name: options for name, options in LAYERS.items() if name != 'IdentityStart'}


class Shift(nn.Module):
    """A layer of a user's own, with neither a name for plugins nor an initialisation."""

    def __init__(self, in_channels, by=1.0):
        super().__init__()
        self.by = nn.Parameter(torch.full((in_channels, 1, 1), by))

    def forward(self, x):
        return x + self.by


every_inner = pytest.mark.parametrize(
    'attention',
    [*(dict(type=name, **options) for name, options in INNER.items()), dict(type=Shift, by=2.0)],
    ids=[*INNER, 'own class'],
)


@every_inner
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_starts_as_the_identity_to_the_bit(attention, dtype):
    layer = IdentityStart(8, attention).to(dtype)
    x = torch.randn(2, 8, 6, 5, dtype=dtype)
    out = layer(x)
    assert out.dtype == dtype
    assert torch.equal(out, x)


@every_inner
def test_under_autocast_too(attention):
    layer = IdentityStart(8, attention)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 8, 6, 5).to(dtype)
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(x)
        assert out.dtype == dtype
        assert torch.equal(out, x)


@every_inner
def test_the_factors_learn_at_once_and_the_layer_after_them(attention):
    torch.manual_seed(0)
    layer = IdentityStart(8, attention)
    inner = list(layer.attention.parameters())
    x, target = torch.randn(2, 8, 6, 5), torch.randn(2, 8, 6, 5)
    (layer(x) * target).sum().backward()
    assert layer.g.grad.all()
    assert not any(parameter.grad.any() for parameter in inner)
    with torch.no_grad():
        layer.g += 0.1
    (layer(x) * target).sum().backward()
    assert all(parameter.grad is not None for parameter in inner)
    assert any(parameter.grad.any() for parameter in inner)


@every_inner
def test_at_one_it_is_the_layer_alone(attention):
    layer = IdentityStart(8, attention).double().eval()
    nn.init.ones_(layer.g)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    assert torch.allclose(layer(x), layer.attention(x), rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_the_equation():
    layer = IdentityStart(3, dict(type=Shift, by=2.0)).double()
    layer.g.data = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    weights = torch.randn_like(x)
    (layer(x) * weights).sum().backward()
    sums = weights.sum((0, 2, 3))
    assert torch.allclose(layer.g.grad, 2.0 * sums)
    assert torch.allclose(layer.attention.by.grad[:, 0, 0], layer.g * sums)


def test_one_factor_a_channel_bears_the_name_of_the_equation():
    state = IdentityStart(8, dict(type='ECA')).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        'g': (8,),
        'attention.conv.weight': (1, 1, 3),
    }


def test_is_the_attention_of_a_van_that_it_does_not_change():
    arch = dict(embed_dims=[8, 16], depths=[1, 2], ffn_ratios=[2, 2])

    def van(attention):
        return VAN(arch, attention, out_indices=(0, 1), layer_scale_init_value=1.0).eval()

    # The gate that does nothing: what a block computes without an attention.
    bare = van(dict(type=nn.Identity))
    model = van(dict(type='IdentityStart', attention=dict(type='LSKA', kernel_size=7)))
    model.load_state_dict(model.state_dict() | bare.state_dict())
    x = torch.rand(1, 3, 64, 48)
    assert all(torch.equal(a, b) for a, b in zip(model(x), bare(x), strict=True))


@every_inner
def test_fuses_exactly(attention):
    torch.manual_seed(0)
    layer = IdentityStart(8, attention).double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    assert torch.allclose(fuse(layer)(x), layer(x), rtol=1e-10, atol=1e-10)


def test_one_inside_another_is_refused():
    inner = dict(type='IdentityStart', attention=dict(type='ECA'))
    with pytest.raises(ValueError, match='would never learn'):
        IdentityStart(8, inner)
    with pytest.raises(ValueError, match='would never learn'):
        IdentityStart(8, dict(type='AttentionSequence', layers=[dict(type='ECA'), inner]))


def test_wrong_configs_are_refused():
    with pytest.raises(ValueError, match='in_channels must be a positive integer'):
        IdentityStart(0, dict(type='ECA'))
    with pytest.raises(TypeError, match="dict with a 'type'"):
        IdentityStart(8, 'ECA')


def test_a_context_aggregation_alone_still_starts_as_the_identity():
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(ContextAggregation(8)(x), x)


@pytest.mark.parametrize(
    'paramwise_cfg',
    [
        dict(flat_decay_mult=0.0),
        dict(custom_keys={'identity_start.g': dict(decay_mult=0.0)}),
    ],
)
def test_as_the_docstring_says_the_factors_take_no_weight_decay(paramwise_cfg):
    model = nn.Module()
    model.identity_start = IdentityStart(8, dict(type='LSKA', kernel_size=7))
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=paramwise_cfg,
        ),
    )
    decays = {
        id(parameter): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert decays[id(model.identity_start.g)] == 0
    assert decays[id(model.identity_start.attention.conv1.weight)] == 0.05
