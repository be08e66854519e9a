from itertools import pairwise

import pytest
import torch
from torch import nn

from mmlska.conversion.kernel_algebra import (
    compose,
    energy_kept,
    least_squares_step,
    outer,
    resize,
    scale_to,
    separate,
    split,
)
from mmlska.models import decompose_kernel

CHANNELS = 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def kernel(height, width):
    return torch.randn(CHANNELS, 1, height, width, dtype=torch.double)


def smooth(side):
    """Bells of different widths with a little noise."""
    x = torch.arange(side) - side // 2
    bells = torch.exp(-(x.double() ** 2) / torch.linspace(2, 30, CHANNELS)[:, None])
    return (bells * (1 + 0.3 * torch.randn(CHANNELS, side))).view(CHANNELS, 1, 1, side)


def depthwise(weight, dilation=1):
    padding = tuple(dilation * (side // 2) for side in weight.shape[2:])
    conv = nn.Conv2d(
        CHANNELS,
        CHANNELS,
        weight.shape[2:],
        padding=padding,
        dilation=dilation,
        groups=CHANNELS,
        bias=False,
    ).double()
    conv.weight.data = weight
    return conv


def distances(first, second):
    return (first - second).square().sum((1, 2, 3))


@pytest.mark.parametrize('dilation', [1, 2, 3, 4])
@pytest.mark.parametrize('sides', [(3, 5), (7, 3)])
def test_the_composed_kernel_acts_as_both_inside(dilation, sides):
    local, dilated = kernel(sides[0], sides[0]), kernel(sides[1], sides[1])
    composed = compose(local, dilated, dilation)
    x = torch.randn(2, CHANNELS, 41, 44, dtype=torch.double)
    both = depthwise(dilated, dilation)(depthwise(local)(x))
    one = depthwise(composed)(x)
    margin = composed.shape[-1] // 2
    inside = (..., slice(margin, -margin), slice(margin, -margin))
    assert composed.shape[-1] == sides[0] + dilation * (sides[1] - 1)
    assert torch.allclose(both[inside], one[inside], atol=1e-12)


def test_the_product_acts_as_row_and_column_also_at_the_borders():
    row, column = kernel(1, 7), kernel(5, 1)
    x = torch.randn(1, CHANNELS, 9, 4, dtype=torch.double)
    one = depthwise(outer(row, column))(x)
    assert torch.allclose(depthwise(column)(depthwise(row)(x)), one, atol=1e-12)


def test_resize_keeps_the_centre():
    small = kernel(3, 5)
    large = resize(small, (7, 11))
    assert torch.equal(large[..., 2:5, 3:8], small)
    assert large.abs().sum() == small.abs().sum()
    assert torch.equal(resize(large, (3, 5)), small)
    assert torch.equal(resize(small, (1, 7))[..., 1:6], small[..., 1:2, :])


@pytest.mark.parametrize('size', [(7, 7), (5, 9), (1, 5)])
def test_no_product_of_row_and_column_is_nearer(size):
    """Eckart and Young: the squared distance is that of the other singular values."""
    full = kernel(*size)
    row, column = separate(full)
    values = torch.linalg.svdvals(full[:, 0])
    expected = values[:, 1:].square().sum(-1)
    assert torch.allclose(distances(outer(row, column), full), expected, atol=1e-12)
    for _ in range(20):
        near = outer(row + 0.05 * torch.randn_like(row), column + 0.05 * torch.randn_like(column))
        assert (distances(near, full) >= expected).all()


def test_row_and_column_have_equal_norms_and_the_rows_a_positive_peak():
    row, column = separate(kernel(7, 7))
    assert torch.allclose(row.square().sum((2, 3)), column.square().sum((2, 3)))
    assert torch.equal(row.amax(-1), row.abs().amax(-1))


def test_a_product_is_separated_exactly():
    full = outer(kernel(1, 7), kernel(7, 1))
    assert torch.allclose(outer(*separate(full)), full, atol=1e-12)


@pytest.mark.parametrize(('kernel_size', 'dilation'), [(11, 2), (23, 3), (23, 4), (23, 2), (9, 1)])
@pytest.mark.parametrize('sides', [1, 2])
def test_more_iterations_never_split_worse(kernel_size, dilation, sides):
    full = kernel(1 if sides == 1 else kernel_size, kernel_size)
    local_side, dilated_side, _ = decompose_kernel(kernel_size, dilation)
    errors = []
    for iterations in (1, 2, 3, 5, 9):
        local, dilated = split(full, dilation, iterations)
        assert local.shape[-1] == local_side
        assert dilated.shape[-1] == dilated_side
        errors.append(distances(compose(local, dilated, dilation), full))
    for earlier, later in pairwise(errors):
        assert (later <= earlier * (1 + 1e-9) + 1e-12).all()
    assert (errors[-1] <= full.square().sum((1, 2, 3)) * (1 + 1e-9)).all()


@pytest.mark.parametrize(('size', 'dilation'), [((1, 23), 3), ((35, 1), 3), ((11, 11), 2)])
def test_what_was_composed_is_split_exactly(size, dilation):
    sides = [(1, 1) if side == 1 else decompose_kernel(side, dilation)[:2] for side in size]
    local, dilated = (kernel(*pair) for pair in zip(*sides, strict=True))
    full = compose(local, dilated, dilation)
    assert full.shape[2:] == size
    assert torch.allclose(compose(*split(full, dilation), dilation), full, atol=1e-8)


def test_without_dilation_every_kernel_splits_exactly():
    full = kernel(9, 9)
    assert torch.allclose(compose(*split(full, 1), 1), full, atol=1e-9)


@pytest.mark.parametrize(('kernel_size', 'dilation'), [(11, 2), (23, 2), (23, 4)])
def test_smooth_kernels_split_well(kernel_size, dilation):
    full = smooth(kernel_size)
    assert energy_kept(full, compose(*split(full, dilation), dilation)) > 0.85


def test_the_factors_are_balanced_and_the_same_each_time():
    full = kernel(1, 23)
    first, second = split(full, 4), split(full, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    norms = [factor.square().sum((1, 2, 3)) for factor in first]
    assert torch.allclose(*norms)


def test_channels_are_split_in_chunks(monkeypatch):
    full = kernel(1, 23)
    expected = [split(full[i : i + 2], 2) for i in range(0, CHANNELS, 2)]
    monkeypatch.setattr('mmlska.conversion.kernel_algebra.CHUNK', 2 * 23**2)
    for found, parts in zip(split(full, 2), zip(*expected, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


def test_a_dead_channel_stays_dead():
    full = kernel(1, 11)
    full[2] = 0
    for factor in (*split(full, 2), *separate(full)):
        assert factor.isfinite().all()
    assert compose(*split(full, 2), 2)[2].abs().max() == 0
    assert outer(*separate(full))[2].abs().max() == 0


def test_energy_kept():
    full = kernel(5, 5)
    assert energy_kept(full, full) == 1
    assert energy_kept(full, resize(full, (9, 9))) == 1
    assert energy_kept(full, torch.zeros_like(full)) == 0
    assert energy_kept(torch.zeros_like(full), torch.zeros_like(full)) == 1
    share = full[..., 1:4, 1:4].square().sum() / full.square().sum()
    assert energy_kept(full, resize(full, (3, 3))) == pytest.approx(float(share))


def test_the_nearest_scale_leaves_a_rest_at_right_angles():
    full, target = kernel(5, 5), kernel(5, 5)
    scaled = full * scale_to(full, target)
    assert torch.allclose(((target - scaled) * full).sum((1, 2, 3)), torch.zeros(()).double())


@pytest.mark.parametrize('ridge', [1e-10, 1e-3, 1.0])
def test_a_step_of_least_squares_never_raises_the_error(ridge):
    system = torch.randn(CHANNELS, 20, 8, dtype=torch.double)
    system[..., 3] = system[..., 4]
    system[0] = 0
    wanted, start = torch.randn(CHANNELS, 20, 2), torch.randn(CHANNELS, 8, 2)
    wanted, start = wanted.double(), start.double()
    found = least_squares_step(system.mT @ system, system.mT @ wanted, start, ridge)
    before, after = ((system @ w - wanted).square().sum((1, 2)) for w in (start, found))
    assert (after <= before).all()
    assert torch.equal(found[0], start[0])
    if ridge == 1e-10:
        best = torch.linalg.lstsq(system[1], wanted[1], driver='gelsd').solution
        assert torch.allclose(system[1] @ found[1], system[1] @ best, atol=1e-6)
