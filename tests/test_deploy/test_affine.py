import pytest
import torch
from fusing_laws import relative_error, trained
from torch import nn

from mmlska.deploy.affine import (
    Affine,
    add_identity,
    add_shift,
    affine_of,
    compose,
    fuse_after,
    fuse_before,
    hand_on_bias,
    is_fusible,
    scale,
    stack,
    takes_input,
    takes_output,
)


def affine(channels):
    return Affine(*torch.randn(2, channels, dtype=torch.float64))


def apply(affine, x):
    shape = [-1] + [1] * (x.dim() - 2)
    return affine.factor.view(shape) * x + affine.shift.view(shape)


def conv(*arguments, **options):
    return nn.Conv2d(*arguments, **options).double()


def maps(channels, *size):
    return torch.randn(2, channels, *(size or (5, 7)), dtype=torch.float64)


def equal(out, expected):
    return relative_error(out, expected) < 1e-14


@pytest.mark.parametrize('affine_parameters', [True, False])
def test_a_norm_is_a_factor_and_a_shift(affine_parameters):
    norm = trained(nn.BatchNorm2d(4, eps=1e-2, affine=affine_parameters)).double()
    x = maps(4)
    assert equal(apply(affine_of(norm), x), norm(x))


@pytest.mark.parametrize('kind', [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize('options', [{}, dict(groups=2, bias=False), dict(padding='same')], ids=str)
def test_any_convolution_takes_a_norm_of_its_output(kind, options):
    layer = kind(4, 6, 3, **options).double()
    x = maps(4, *[5] * (layer.weight.dim() - 2))
    after = affine(6)
    assert equal(fuse_after(layer, after)(x), apply(after, layer(x)))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('stride', [1, 2])
def test_a_pointwise_convolution_takes_a_norm_of_its_input(bias, stride):
    layer, before, x = conv(4, 6, 1, stride=stride, bias=bias), affine(4), maps(4)
    assert equal(fuse_before(before, layer)(x), layer(apply(before, x)))


def test_a_shift_before_a_padded_convolution_is_not_a_shift_after_it():
    layer, before, x = conv(4, 6, 3, padding=1), affine(4), maps(4)
    expected = layer(apply(before, x))
    inside = (..., slice(1, -1), slice(1, -1))
    shift = layer.weight.sum((2, 3)) @ before.shift
    moved = fuse_after(layer, Affine(torch.ones(6).double(), shift))
    with torch.no_grad():
        moved.weight *= before.factor[None, :, None, None]
    assert equal(moved(x)[inside], expected[inside])
    assert relative_error(moved(x), expected) > 1e-2
    assert not takes_input(layer)


def test_shifts_biases_and_identities():
    x = maps(4)
    layer, shift = conv(4, 4, 5, padding=2, groups=4), affine(4).shift
    assert equal(add_shift(layer, shift)(x), layer(x) + shift[:, None, None])
    assert equal(add_identity(layer)(x), x + layer(x))
    following = conv(4, 3, 1)
    without, with_both = hand_on_bias(layer, following)
    assert without.bias is None
    assert equal(with_both(without(x)), following(layer(x)))


@pytest.mark.parametrize('bias', [True, False])
def test_pointwise_convolutions_are_composed_and_stacked(bias):
    x = maps(4)
    first, second, other = conv(4, 2, 1, bias=bias), conv(2, 5, 1), conv(4, 3, 1)
    assert equal(compose(first, second)(x), second(first(x)))
    assert equal(stack(first, other)(x), torch.cat([first(x), other(x)], 1))


def test_the_given_convolution_and_its_dtype_are_kept():
    layer = nn.Conv2d(4, 6, 1).half()
    before = layer.weight.clone()
    for made in (fuse_after(layer, affine(6)), fuse_before(affine(4), layer)):
        assert made is not layer and made.weight.dtype == made.bias.dtype == torch.float16
    assert torch.equal(layer.weight, before)


def test_float32_is_rounded_once():
    layer, factors = nn.Conv2d(64, 64, 1), [scale(torch.rand(64) + 0.5) for _ in range(2)]
    fused = fuse_after(layer, factors[0])
    exact = layer.weight.double() * factors[0].factor[:, None, None, None]
    assert torch.equal(fused.weight, exact.float())


class Other(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ('norm', 'fusible'),
    [
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm2d(4, affine=False), True),
        (nn.BatchNorm2d(4, track_running_stats=False), False),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
        (nn.LayerNorm(4), False),
        (Other(4), False),
        (None, False),
    ],
)
def test_what_a_fixed_factor_and_shift_is(norm, fusible):
    assert is_fusible(norm) == fusible


class Standardised(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / self.weight.std()


@pytest.mark.parametrize(
    ('layer', 'output', 'input'),
    [
        (nn.Conv2d(4, 4, 1), True, True),
        (nn.Conv2d(4, 4, 1, groups=2), True, False),
        (nn.Conv2d(4, 4, 1, padding=1), True, False),
        (nn.Conv2d(4, 4, 1, padding='same'), True, True),
        (nn.Conv2d(4, 4, (1, 3)), True, False),
        (nn.ConvTranspose2d(4, 4, 1), False, False),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), False, False),
        (nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)), False, False),
        (Standardised(4, 4, 1), False, False),
        (nn.Linear(4, 4), False, False),
    ],
)
def test_which_convolutions_take_a_norm(layer, output, input):
    assert (takes_output(layer), takes_input(layer)) == (output, input)
