"""Every legal kernel on every kind of map: the sides' remainders by the dilation, both layouts."""

import pytest
import torch
from cascades import relative_error, with_gradients

from mmlska.layers import decompose_kernel

LAYOUTS = [torch.contiguous_format, torch.channels_last]
# All kernels from 3 to 65 with all dilations that split them, one tap left of the kernel included.
SPLITS = [(k, d) for k in range(3, 66, 2) for d in range(1, 34) if (k + 1) % (2 * d) == 0]


def make(kernel_size, dilation, kind, size, channels=2):
    local, dilated, d = decompose_kernel(kernel_size, dilation)
    kernels, dilations = {
        'LKA': ([(local, local), (dilated, dilated)], [1, d]),
        'LSKA': ([(1, local), (local, 1), (1, dilated), (dilated, 1)], [1, 1, d, d]),
        'dilated square': ([(dilated, dilated)], [d]),
    }[kind]
    torch.manual_seed(0)
    x = torch.randn(1, channels, *size, dtype=torch.float64)
    weights = [torch.randn(channels, 1, *k, dtype=x.dtype) / (k[0] * k[1]) ** 0.5 for k in kernels]
    return x, weights, [torch.randn(channels, dtype=x.dtype) for _ in kernels], dilations


def sizes(dilation):
    """Maps whose heights and widths leave every remainder, once below and once above a dilation."""
    for remainder in range(dilation):
        height, width = remainder, dilation - 1 - remainder
        yield (height or dilation, (width or dilation) + dilation * (remainder % 2))


def check(kernel_size, dilation, kind):
    for size in sizes(dilation):
        call = make(kernel_size, dilation, kind, size)
        expected = with_gradients('plain', *call)
        for layout in LAYOUTS:
            found = with_gradients('cpu', *call, layout=layout)
            for value, truth in zip(found, expected, strict=True):
                assert relative_error(value, truth) <= 1e-11, (size, layout)


def test_the_splits_are_all_that_there_are():
    assert {k for k, _ in SPLITS} == set(range(3, 66, 2))
    assert {(3, 2), (5, 3), (7, 4), (65, 33), (65, 1), (23, 3)} <= set(SPLITS)
    assert all(decompose_kernel(k, d)[2] == d for k, d in SPLITS)


@pytest.mark.parametrize(('kernel_size', 'dilation'), SPLITS)
def test_lska_trains_on_the_cpu_as_the_reference_says(kernel_size, dilation):
    check(kernel_size, dilation, 'LSKA')


@pytest.mark.parametrize(('kernel_size', 'dilation'), SPLITS)
def test_the_dilated_square_of_lka_trains_on_the_cpu_as_the_reference_says(kernel_size, dilation):
    check(kernel_size, dilation, 'dilated square')


@pytest.mark.parametrize(('kernel_size', 'dilation'), [(k, d) for k, d in SPLITS if k <= 23])
def test_lka_trains_on_the_cpu_as_the_reference_says(kernel_size, dilation):
    check(kernel_size, dilation, 'LKA')
