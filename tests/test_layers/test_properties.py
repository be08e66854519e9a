"""What holds for every legal configuration of every layer and neck, on maps of any size."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlska.models import PyramidAttention, SpatialContextPyramid
from mmlska.registry import MODELS

# The same examples in every run: a failure is one that everybody sees.
few = settings(max_examples=30, deadline=None, derandomize=True, database=None)

CHANNELS = st.integers(1, 12)


@st.composite
def decomposed(draw):
    """A kernel that has an exact decomposition: ``(k + 1) / d`` is an even integer."""
    dilation = draw(st.integers(1, 5))
    kernel_size = 2 * dilation * draw(st.integers(1, 6)) - 1
    return dict(kernel_size=kernel_size, dilation=dilation)


ODD = st.integers(0, 12).map(lambda half: dict(kernel_size=2 * half + 1))
NORMS = st.sampled_from([dict(type='BN'), dict(type='LN'), dict(type='GN', num_groups=1)])
OPTIONS = {
    'LKA': decomposed(),
    'LSKA': decomposed(),
    'LKATrivial': ODD,
    'LSKATrivial': ODD,
    'ContextAggregation': st.fixed_dictionaries({}, optional=dict(reduction=st.integers(1, 20))),
    'ECA': st.one_of(
        st.just({}),
        st.integers(0, 4).map(lambda half: dict(kernel_size=2 * half + 1)),
        st.fixed_dictionaries(dict(gamma=st.floats(0.5, 4), b=st.floats(-2, 4))),
    ),
    'DFCAttention': st.builds(lambda odd, norm: dict(odd, norm_cfg=norm), ODD, NORMS),
    'MixedAffinity': ODD,
}


@st.composite
def leaves(draw, name=None):
    """Config and channels of a layer that holds no other."""
    name = name or draw(st.sampled_from(list(OPTIONS)))
    channels = draw(CHANNELS)
    options = draw(OPTIONS[name])
    if options.get('norm_cfg', {}).get('type') == 'GN':
        # PyTorch normalises no group of a single number.
        channels += 1
    if name == 'MixedAffinity':
        divisors = [heads for heads in range(1, channels + 1) if channels % heads == 0]
        options = dict(options, num_heads=draw(st.sampled_from(divisors)))
    return dict(type=name, **options), channels


@st.composite
def layers(draw, name):
    """Config and channels of a layer of this name."""
    if name in OPTIONS:
        return draw(leaves(name))
    attention, channels = draw(leaves())
    if name == 'IdentityStart':
        return dict(type=name, attention=attention), channels
    more = [dict(type='ECA', postfix='_again'), dict(type='ContextAggregation', postfix='_again')]
    chosen = draw(st.lists(st.sampled_from(more), unique_by=lambda cfg: cfg['type']))
    return dict(type=name, layers=[attention, *chosen]), channels


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13))
NAMES = sorted(name for name, kind in MODELS.module_dict.items() if hasattr(kind, '_abbr_'))


def build(cfg, **channels):
    """A layer far from its first weights, in evaluation mode."""
    options = dict(cfg)
    torch.manual_seed(0)
    module = MODELS.get(options.pop('type'))(**channels, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def agree(out, expected, tolerance):
    return (out.double() - expected.double()).abs().max() <= tolerance * (
        1 + expected.abs().max().double()
    )


@pytest.mark.parametrize('name', NAMES)
@few
@given(data=st.data())
def test_every_legal_layer_keeps_what_it_promises(name, data):
    cfg, channels = data.draw(layers(name))
    number, height, width = data.draw(SIZES)
    layer = build(cfg, in_channels=channels)
    x = torch.randn(number, channels, height, width)
    exact = copy.deepcopy(layer).double()(x.double())

    out = layer(x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert agree(out, exact, 1e-5)
    assert agree(layer(x.to(memory_format=torch.channels_last)), exact, 1e-5)
    assert agree(torch.cat([layer(image[None]) for image in x]), exact, 1e-5)
    with torch.inference_mode():
        assert agree(layer(x), exact, 1e-5)
    assert layer(x[:0]).shape == (0, channels, height, width)

    other = build(cfg, in_channels=channels)
    nn.init.zeros_(next(other.parameters()))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), out)


@pytest.mark.parametrize('name', NAMES)
@few
@given(data=st.data())
def test_every_legal_layer_trains(name, data):
    cfg, channels = data.draw(layers(name))
    number, height, width = data.draw(SIZES)
    layer = build(cfg, in_channels=channels).double().train()
    x = torch.randn(number, channels, height, width, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    for parameter in layer.parameters():
        assert torch.isfinite(parameter.grad).all()


@few
@given(data=st.data())
def test_every_legal_neck_applies_its_layers_level_by_level(data):
    number = data.draw(st.integers(1, 4))
    if data.draw(st.booleans()):
        attention, channels = data.draw(leaves())
        neck = build(
            dict(type='PyramidAttention', attention=attention, num_outs=number),
            in_channels=channels,
        )
        channels = [channels] * number
    else:
        channels = data.draw(st.lists(CHANNELS, min_size=number, max_size=number))
        neck = build(
            dict(type='SpatialContextPyramid', num_outs=number, reduction=2), in_channels=channels
        )
    assert isinstance(neck, PyramidAttention | SpatialContextPyramid)
    pyramid = [torch.randn(2, c, *data.draw(SIZES)[1:]) for c in channels]
    outs = neck(pyramid)
    assert [out.shape for out in outs] == [x.shape for x in pyramid]
    for level, x, out in zip(neck.levels, pyramid, outs, strict=True):
        assert agree(out, copy.deepcopy(level).double()(x.double()), 1e-5)
