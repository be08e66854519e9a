import pytest
import torch
from torch_versions import half_on_cpu

from mmlska.models import ContextAggregation


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def randomised(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.double()


def explicit(layer, x):
    """The equation, position by position."""
    named = {
        name: (conv.weight[:, :, 0, 0], conv.bias) for name, conv in layer.named_children() if name
    }

    def apply(name, vector):
        weight, bias = named[name]
        return weight @ vector + bias

    out = torch.empty_like(x)
    for n, image in enumerate(x):
        positions = [image[:, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])]
        shares = torch.stack([apply('k', position)[0].exp() for position in positions])
        shares = shares / shares.sum()
        context = sum(s * apply('v', p) for s, p in zip(shares, positions, strict=True))
        for index, position in enumerate(positions):
            gate = 1 / (1 + (-apply('a', position)).exp())
            i, j = divmod(index, x.shape[3])
            out[n, :, i, j] = position + gate * apply('m', context)
    return out


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (5, 7)])
@pytest.mark.parametrize('reduction', [1, 2, 4, 100])
def test_equals_its_equation(size, reduction):
    torch.manual_seed(0)
    layer = randomised(ContextAggregation(6, reduction))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    assert relative_error(layer(x), explicit(layer, x)) < 1e-12


def test_equals_the_official_layer(golden):
    state, tensors = golden('e_catnet/context_aggregation_c16_r1')
    layer = ContextAggregation(16)
    layer.load_state_dict(state)
    assert relative_error(layer(tensors['input']), tensors['out_f32']) < 1e-5
    out = layer.double()(tensors['input'].double())
    assert relative_error(out, tensors['out_f64']) < 1e-11


def test_a_new_layer_is_the_identity_and_can_learn():
    x = torch.randn(2, 8, 5, 6)
    layer = ContextAggregation(8)
    out = layer(x)
    assert torch.equal(out, x)
    (out * torch.randn_like(out)).sum().backward()
    assert layer.m.weight.grad.abs().min() > 0


def test_other_weights_start_as_in_caffe2():
    torch.manual_seed(0)
    layer = ContextAggregation(400)
    for conv in (layer.a, layer.k, layer.v):
        # Uniform within sqrt(3 / fan_in), the variance is 1 / fan_in.
        assert conv.weight.abs().max() <= (3 / 400) ** 0.5
        assert conv.weight.std().item() == pytest.approx(400**-0.5, rel=0.1)
        assert not conv.bias.any()


# Published counts: FACTS of the official layer, 2(C + 1) + (C C_i + C_i) + (C_i C + C).
@pytest.mark.parametrize(
    ('channels', 'reduction', 'parameters'),
    [(16, 1, 578), (16, 4, 182), (64, 1, 8450), (256, 1, 132098), (256, 4, 33602)],
)
def test_parameters_are_those_of_the_official_layer(channels, reduction, parameters):
    layer = ContextAggregation(channels, reduction)
    assert sum(p.numel() for p in layer.parameters()) == parameters


def test_the_bias_of_the_keys_has_no_effect():
    torch.manual_seed(0)
    layer = randomised(ContextAggregation(4))
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    before = layer(x)
    torch.nn.init.constant_(layer.k.bias, 30)
    assert torch.allclose(layer(x), before, rtol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=half_on_cpu)])
@pytest.mark.parametrize('autocast', [False, True])
def test_four_million_positions_in_half_precision(dtype, autocast):
    torch.manual_seed(0)
    layer = ContextAggregation(2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    # A mean far from zero shows shares that round to zero, or that do not sum to one.
    x = torch.randn(1, 2, 2048, 2048).add_(1).to(dtype)
    with torch.no_grad():
        expected = layer.double()(x.double()) - x
        layer.float() if autocast else layer.to(dtype)
        with torch.autocast('cpu', dtype, enabled=autocast):
            out = layer(x)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    resolution = torch.finfo(dtype).eps
    assert (out - x).double().sub(expected).abs().max() < 12 * resolution


def test_memory_is_linear_in_the_number_of_positions():
    layer = ContextAggregation(2)
    # A tensor of (HW)^2 positions would take 1 TB here.
    assert layer(torch.rand(1, 2, 512, 1024)).shape == (1, 2, 512, 1024)


@pytest.mark.parametrize('reduction', [0, -1, 1.5, '2', None, True])
def test_an_impossible_reduction_is_refused(reduction):
    with pytest.raises(ValueError, match=r'reduction must be a positive integer, but got'):
        ContextAggregation(8, reduction)


def test_in_channels_must_be_positive():
    with pytest.raises(ValueError, match='in_channels must be a positive integer, but got 0'):
        ContextAggregation(0)


def test_two_names_for_one_weight_are_refused():
    layer = ContextAggregation(4)
    state = {**layer.state_dict(), 'a.conv.weight': layer.a.weight}
    with pytest.raises(KeyError, match=r"'a\.weight' twice, once as 'a\.conv\.weight'"):
        layer.load_state_dict(state)
