"""Margins and views: a dilated kernel is one without dilation on another view of the map."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mmlska.ops.depthwise_cascade.arrangement import arrange, redilate, rows_of, undilate

LSKA = ((1, 5), (5, 1), (1, 7), (7, 1)), (1, 1, 3, 3)
SIDES = range(1, 14)


@pytest.mark.parametrize('dilation', [2, 3, 4, 5])
def test_margins_make_sides_multiples_and_are_what_padding_makes_where_that_is_possible(dilation):
    kernels = ((1, 3), (3, 3))
    for height, width in itertools.product(SIDES, SIDES):
        found = arrange((height, width), kernels, (1, dilation), training=True)
        assert (height + found.top + found.bottom) % dilation == 0
        assert (width + found.left + found.right) % dilation == 0
        # Twice a number is odd in no ring of integers modulo an even one.
        is_possible = dilation % 2 or height % 2 == width % 2 == 0
        is_symmetric = found.top == found.bottom and found.left == found.right
        assert is_symmetric or not is_possible
        assert found.padding == ((found.top, found.left) if is_symmetric else (0, 0))
        assert max(found.top, found.bottom, found.left, found.right) < dilation


def test_only_what_a_pass_needs_has_margins():
    forward = arrange((10, 10), *LSKA, training=False)
    assert (forward.top, forward.bottom, forward.left, forward.right) == (0, 0, 1, 1)
    assert forward.undilated == (False, False, True, False) and forward.first == 2
    training = arrange((10, 10), *LSKA, training=True)
    assert (training.top, training.bottom, training.left, training.right) == (1, 1, 1, 1)
    short = arrange((10, 10), ((1, 3), (3, 1), (1, 5), (5, 1)), (1, 1, 2, 2), training=False)
    assert short.undilated == (False,) * 4 and short.first == 4
    assert (short.top, short.bottom, short.left, short.right) == (0, 0, 0, 0)


def test_a_single_tap_has_no_dilation():
    found = arrange((5, 5), ((1, 1), (3, 1)), (3, 1), training=True)
    assert found.dilations == (1, 1) and found.first == 2


def test_a_map_is_padded_once_cropped_and_its_margins_cleared():
    found = arrange((4, 5), *LSKA, training=True)
    x = torch.randn(2, 3, 4, 5)
    padded = found.pad(x)
    assert padded.shape == (2, 3, 6, 9) and torch.equal(found.crop(padded), x)
    assert found.pad(padded) is padded
    noisy = torch.randn_like(padded)
    inside = found.crop(noisy).clone()
    found.clear(noisy, [3])
    assert noisy[:, :, 0].any() and not noisy[..., :2].any() and not noisy[..., 7:].any()
    found.clear(noisy)
    assert torch.equal(found.crop(noisy), inside)
    assert torch.equal(noisy, found.pad(inside))


@pytest.mark.parametrize('kernel', [(1, 3), (3, 1), (3, 3), (1, 5)])
@pytest.mark.parametrize('dilation', [1, 2, 3])
def test_on_the_other_view_a_kernel_has_no_dilation(kernel, dilation):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 12, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 1, *kernel, dtype=x.dtype)
    reach = [k // 2 for k in kernel]
    expected = F.conv2d(x, weight, None, 1, [dilation * r for r in reach], dilation, 4)
    view = undilate(x, kernel, dilation)
    there = weight.repeat(view.shape[1] // 4, 1, 1, 1)
    found = redilate(F.conv2d(view, there, None, 1, reach, 1, len(there)), x, kernel)
    assert torch.allclose(found, expected, atol=1e-12)
    if min(kernel) == 1:
        assert view.data_ptr() == x.data_ptr()


@pytest.mark.parametrize('dilation', [1, 2, 3])
def test_in_the_rows_a_horizontal_kernel_is_vertical(dilation):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 1, 1, 5, dtype=x.dtype)
    expected = F.conv2d(x, weight, None, 1, (0, 2 * dilation), dilation, 4)
    rows = rows_of(x, dilation)
    assert rows.data_ptr() == x.data_ptr() and rows.shape == (10, 4, 12 // dilation, dilation)
    found = F.conv2d(rows, weight.transpose(2, 3), None, 1, (2, 0), 1, 4)
    assert torch.allclose(found, rows_of(expected, dilation), atol=1e-12)
