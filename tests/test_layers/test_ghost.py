import pytest
import torch
from torch import nn

from mmlska.layers.ghost import GhostBottleneck, GhostModule, SqueezeExcite, make_divisible


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def randomised(module):
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return module.double().eval()


@pytest.mark.parametrize(
    ('name', 'build'),
    [
        ('module_attn_even', lambda: GhostModule(8, 16, attention=True)),
        (
            'bottleneck_s1_attn_se',
            lambda: GhostBottleneck(16, 48, 16, se_ratio=0.25, attention=True),
        ),
        ('bottleneck_s1_original_id0', lambda: GhostBottleneck(16, 16, 16)),
    ],
)
def test_equals_the_official_code(golden, name, build):
    state, tensors = golden(f'f_ghost/{name}')
    module = build().eval()
    module.load_state_dict(state)
    x = tensors['input']
    assert relative_error(module(x), tensors['out_f64']) < 1e-5
    assert relative_error(module.double()(x.double()), tensors['out_f64']) < 1e-11


@pytest.mark.parametrize(
    ('channels', 'expected'),
    # Steps of 4, halves up, and one more step where that takes away more than a tenth.
    [
        (16, 16),
        (18, 20),
        (17.7, 16),
        (17.9, 20),
        (93.6, 92),
        (20.8, 20),
        (6.4, 8),
        (5.9, 8),
        (5, 8),
        (0.1, 4),
    ],
)
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected


def test_squeeze_excite_equals_its_equation():
    module = randomised(SqueezeExcite(8, 0.5))
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    hidden = x.mean((2, 3)) @ module.conv_reduce.weight[:, :, 0, 0].T + module.conv_reduce.bias
    gate = hidden.clamp(min=0) @ module.conv_expand.weight[:, :, 0, 0].T + module.conv_expand.bias
    gate = ((gate + 3) / 6).clamp(0, 1)
    assert torch.allclose(module(x), x * gate[:, :, None, None])


@pytest.mark.parametrize('out_channels', [6, 7])
@pytest.mark.parametrize('attention', [False, True])
def test_a_ghost_module_is_its_primary_half_its_cheap_half_and_its_gate(out_channels, attention):
    module = randomised(GhostModule(3, out_channels, attention=attention))
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    out = module(x)
    primary = module.primary_conv(x)
    gate = module.short_conv(x) if attention else torch.ones_like(out)
    half = (out_channels + 1) // 2
    assert out.shape == (2, out_channels, 7, 5)
    assert torch.allclose(out[:, :half], primary * gate[:, :half])
    cheap = module.cheap_operation(primary)[:, : out_channels - half]
    assert torch.allclose(out[:, half:], cheap * gate[:, half:])


@pytest.mark.parametrize('activate', [True, False])
def test_activation_is_optional(activate):
    torch.manual_seed(0)
    out = GhostModule(4, 8, activate=activate)(torch.randn(2, 4, 6, 6))
    assert (out.min() >= 0) == activate


@pytest.mark.parametrize('size', [(8, 6), (7, 5), (1, 1), (1, 4)])
@pytest.mark.parametrize(('stride', 'kernel_size'), [(1, 3), (2, 3), (2, 5)])
def test_a_bottleneck_halves_the_map_rounding_up(size, stride, kernel_size):
    module = GhostBottleneck(4, 12, 8, kernel_size, stride, se_ratio=0.25, attention=True).eval()
    expected = tuple(-(-side // stride) for side in size)
    assert module(torch.randn(2, 4, *size)).shape == (2, 8, *expected)


def test_a_bottleneck_adds_its_input():
    module = randomised(GhostBottleneck(4, 8, 4))
    for norm in (module.ghost2.primary_conv[1], module.ghost2.cheap_operation[1]):
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize('size', [(8, 12), (9, 7)])
def test_dilation_in_place_of_the_stride_computes_the_same_and_more_between(size):
    def chain(**options):
        blocks = nn.Sequential(
            GhostBottleneck(4, 12, 8, 5, stride=2, se_ratio=0.25, **options),
            GhostBottleneck(8, 16, 8, dilation=2 if options else 1),
        )
        blocks = randomised(blocks)
        # A global mean differs between a map and its half: a gate that does not depend on it.
        nn.init.zeros_(blocks[0].se.conv_expand.weight)
        return blocks

    torch.manual_seed(0)
    strided = chain()
    dilated = chain(stride_to_dilation=True)
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    assert dilated(x).shape[2:] == size
    assert torch.allclose(dilated(x)[..., ::2, ::2], strided(x), rtol=1e-12)


def test_checkpointing_gives_the_same_gradients():
    plain = randomised(GhostBottleneck(4, 8, 6, stride=2, se_ratio=0.5, attention=True))
    saving = GhostBottleneck(4, 8, 6, stride=2, se_ratio=0.5, attention=True, with_cp=True)
    saving.double().eval().load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    for module in (plain, saving):
        module(x).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10)


def test_gradients():
    torch.manual_seed(0)
    module = randomised(GhostBottleneck(2, 3, 3, se_ratio=1.0, attention=True))
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
