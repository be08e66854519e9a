import copy

import pytest
import torch
from torch import fx, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mmlska.layers import LKA, LSKA, ConvFFN
from mmlska.ops import (
    call_context,
    use_backend,
    why_no_pointwise_conv,
    why_no_same_conv,
    why_observed,
    why_watched,
)


def observed_under(transform, x):
    """What a call is told about its surroundings where a transform calls it."""
    reasons = []

    def call(x):
        reasons.append(why_observed(x))
        return x * 1.0

    transform(call)(x)
    return reasons[-1]


def test_an_eager_call_of_a_tensor_or_a_parameter_is_observed_by_nobody():
    x = torch.randn(2, 3)
    assert why_observed(x) == why_observed(nn.Parameter(x), x) == ''
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert why_observed(x) == ''
    with torch.inference_mode():
        assert why_observed(torch.ones(1)) == ''


@pytest.mark.parametrize(
    ('transform', 'reason'),
    [
        (lambda call: torch.func.vmap(call), 'torch.func'),
        (lambda call: torch.func.grad(lambda x: call(x).sum()), 'torch.func'),
        (lambda call: lambda x: torch.func.jvp(call, (x,), (x,)), 'torch.func'),
        (lambda call: lambda x: torch.jit.trace(call, x, check_trace=False), 'torch.jit.trace'),
        (lambda call: lambda x: fx.experimental.proxy_tensor.make_fx(call)(x), 'dispatch mode'),
    ],
)
def test_transforms_and_tracers_are_named(transform, reason):
    assert reason in observed_under(transform, torch.randn(2, 3))


def test_a_tracer_without_gradients_is_a_tracer():
    with torch.no_grad():
        assert 'torch.jit.trace' in observed_under(
            lambda call: lambda x: torch.jit.trace(call, x, check_trace=False), torch.randn(2)
        )


def test_modes_are_named():
    x = torch.randn(2, 3)
    with FlopCounterMode(display=False):
        assert 'dispatch mode' in why_observed(x)
    with forward_ad.dual_level():
        assert 'forward-mode' in why_observed(x)
    assert why_observed(x) == ''


def test_what_stands_in_for_a_tensor_is_named():
    class Own(torch.Tensor):
        pass

    x = torch.randn(2, 3)
    assert 'Own is no plain tensor' in why_observed(x.as_subclass(Own))
    assert 'meta' in why_observed(x.to('meta'))
    assert 'Proxy' in why_observed(fx.Proxy(fx.Graph().placeholder('x')))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert 'FakeTensor' in why_observed(x, fake)


@pytest.mark.parametrize(
    'watch',
    [
        lambda conv: conv.register_forward_hook(lambda *_: None),
        lambda conv: conv.register_forward_pre_hook(lambda *_: None),
        lambda conv: conv.register_full_backward_hook(lambda *_: None),
        lambda conv: conv.register_full_backward_pre_hook(lambda *_: None),
    ],
)
def test_hooks_are_named_as_long_as_they_are_there(watch):
    conv, act = nn.Conv2d(2, 2, 3), nn.GELU()
    assert why_watched(conv, act) == ''
    handle = watch(conv)
    assert 'Conv2d' in why_watched(act, conv) and why_watched(act) == ''
    handle.remove()
    assert why_watched(conv, act) == ''


def test_a_forward_that_was_replaced_is_named():
    conv = nn.Conv2d(2, 2, 3)
    conv.forward = lambda x: x
    assert 'forward of a Conv2d' in why_watched(conv)


def same_conv(**options):
    return nn.Conv2d(4, 4, (3, 5), **{**dict(padding=(2, 4), dilation=2, groups=4), **options})


def test_a_convolution_that_keeps_the_size_is_one():
    assert why_no_same_conv(same_conv(), same_conv(padding='same'), depthwise=True, reach=2) == ''
    assert why_no_same_conv(nn.Conv2d(4, 6, 1), reach=0) == ''


@pytest.mark.parametrize(
    ('conv', 'reason'),
    [
        (same_conv(padding_mode='circular'), 'padding'),
        (same_conv(stride=2), 'stride'),
        (same_conv(padding=2), 'padding'),
        (same_conv(padding='valid'), 'padding'),
        (same_conv(dilation=(2, 1), padding=(2, 2)), 'dilation'),
        (nn.Conv2d(4, 4, 4, padding=2, groups=4), 'padding'),
        (same_conv(groups=2), 'channels'),
        (nn.LazyConv2d(4, 3, padding=1), 'LazyConv2d'),
        (nn.Conv1d(4, 4, 3, padding=1), 'Conv1d'),
    ],
)
def test_any_other_is_named(conv, reason):
    assert reason in why_no_same_conv(same_conv(), conv, depthwise=True)


def test_a_convolution_that_sees_other_rows_is_named():
    assert 'kernel' in why_no_same_conv(same_conv(), reach=1)


@pytest.mark.parametrize(
    ('conv', 'reason'),
    [
        (nn.Conv2d(4, 4, 1), ''),
        (nn.Conv2d(4, 4, 1, dilation=3, bias=False), ''),
        (nn.Conv2d(4, 4, 1, padding='same'), ''),
        (nn.Conv2d(4, 4, 1, groups=2), 'is not a 1x1 one'),
        (nn.Conv2d(4, 6, 1), 'is not a 1x1 one'),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), 'is not a 1x1 one'),
        (nn.Conv2d(4, 4, 3, padding=1), 'is not a 1x1 one'),
        (nn.Conv2d(4, 4, 1, stride=2), 'stride'),
        (nn.Conv2d(4, 4, 1, padding=1), 'padding'),
        (nn.Conv1d(4, 4, 1), 'Conv1d'),
        (nn.Identity(), 'Identity'),
    ],
)
def test_a_pointwise_convolution_is_one_and_any_other_is_named(conv, reason):
    found = why_no_pointwise_conv(conv)
    assert (reason in found) if reason else found == ''


def by_modules(layer, x):
    for conv in layer.depthwise_convs():
        x = conv(x)
    return x


def wrap_around(conv):
    """Pad with what stands at the other side."""
    conv.padding_mode, conv._reversed_padding_repeated_twice = 'circular', [1, 1, 1, 1]


def double(conv):
    """Replace what the module does, not its class."""
    conv.forward = lambda x: 2 * x


def stride(conv):
    conv.stride = (2, 2)


@pytest.mark.parametrize('alter', [wrap_around, double, stride])
@pytest.mark.parametrize('backend', ['auto', 'cpu', 'plain'])
def test_altered_convolutions_of_a_layer_compute_what_they_are(alter, backend):
    torch.manual_seed(0)
    layer, x = LKA(4, 7), torch.randn(1, 4, 12, 12)
    before = by_modules(layer, x)
    alter(layer.depthwise_convs()[0])
    expected = by_modules(layer, x)
    assert expected.shape != before.shape or not torch.allclose(expected, before)
    if expected.shape == x.shape:
        with use_backend(backend):
            assert torch.allclose(layer(x), x * layer.conv1(expected), atol=1e-6)
    else:
        with use_backend(backend), pytest.raises(RuntimeError, match='size'):
            layer(x)


@torch.no_grad()
@pytest.mark.parametrize('part', ['fc1', 'dwconv', 'fc2', 'act'])
def test_altered_parts_of_the_ffn_see_the_whole_map(part, monkeypatch):
    monkeypatch.setattr('mmlska.ops.row_bands.WORTHWHILE', 1)
    monkeypatch.setattr('mmlska.ops.row_bands.IN_BAND', 1)
    ffn, heights = ConvFFN(4, 8).eval(), []
    module = getattr(ffn, part)
    forward = module.forward

    def note(x):
        heights.append(x.shape[2])
        return forward(x)

    module.forward = note
    ffn(torch.randn(1, 4, 23, 9))
    assert heights == [23]


@torch.no_grad()
def test_bands_know_the_padding_of_the_ffn(monkeypatch):
    monkeypatch.setattr('mmlska.ops.row_bands.WORTHWHILE', 1)
    monkeypatch.setattr('mmlska.ops.row_bands.IN_BAND', 1)
    torch.manual_seed(0)
    ffn, x = ConvFFN(4, 8).eval(), torch.randn(1, 4, 23, 9)
    conv = ffn.dwconv
    ffn.dwconv = nn.Conv2d(8, 8, 5, padding=2, groups=8, padding_mode='circular')
    assert torch.allclose(ffn(x), ffn._forward(x), atol=1e-6)
    ffn.dwconv = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode='circular')
    assert torch.allclose(ffn(x), ffn._forward(x), atol=1e-6)
    assert not torch.allclose(conv(torch.ones(1, 8, 3, 3)), ffn.dwconv(torch.ones(1, 8, 3, 3)))


def test_a_symbol_of_fx_shows_every_convolution():
    graph = fx.symbolic_trace(LSKA(4, 7)).graph
    called = [node.target for node in graph.nodes if node.op == 'call_module']
    assert called == ['conv0h', 'conv0v', 'conv_spatial_h', 'conv_spatial_v', 'conv1']


def test_the_layout_of_a_map_is_channels_last_only_where_it_is_nothing_else():
    x = torch.randn(2, 3, 4, 5)
    assert call_context.layout_of(x) == torch.contiguous_format
    last = x.to(memory_format=torch.channels_last)
    assert call_context.layout_of(last) == torch.channels_last
    assert call_context.layout_of(last[:, :1].contiguous()) == torch.contiguous_format
    assert call_context.layout_of(x.transpose(2, 3)) == torch.contiguous_format


def test_copies_and_pickles_of_a_layer_are_no_altered_ones():
    assert why_no_same_conv(*copy.deepcopy(LSKA(4, 7)).depthwise_convs(), depthwise=True) == ''
