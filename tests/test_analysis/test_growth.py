"""How the cost of LSKA grows, in counts and not in seconds: linearly in k, H, W and C."""

from itertools import pairwise

import pytest
import torch

from benchmarks.layers import saved_bytes
from mmlska.analysis.complexity import count_macs, count_params, meta_input
from mmlska.analysis.timing import peak_bytes
from mmlska.models import LSKA
from mmlska.ops import use_backend

# One dilation each, as what is linear in k is the dilated pair.
SIZES = {2: (3, 7, 11, 15, 19), 3: (23, 29, 35, 41, 47, 53, 59, 65)}
SHAPE = dict(channels=24, height=36, width=30)
SIDES = tuple(SHAPE)
BACKENDS = ('plain', 'cpu')


def grown(side: str, factor: int) -> tuple[int, int, int]:
    return tuple(SHAPE[name] * (factor if name == side else 1) for name in SHAPE)


def layer_and_input(kernel_size: int, shape: tuple[int, int, int], device: str = 'cpu'):
    torch.manual_seed(0)
    layer = LSKA(shape[0], kernel_size).to(device)
    return layer, torch.zeros(1, *shape, device=device)


def cascade_macs(kernel_size: int, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of the depth-wise convolutions: those of the layer less those of the 1x1."""
    layer, x = layer_and_input(kernel_size, shape, 'meta')
    pointwise, _ = count_macs(layer.conv1, meta_input(1, *shape))
    return count_macs(layer, x)[0] - pointwise


@pytest.mark.parametrize('dilation', SIZES)
def test_operations_and_parameters_grow_linearly_in_k(dilation):
    channels, height, width = SHAPE.values()
    for smaller, larger in pairwise(SIZES[dilation]):
        # Two 1-D kernels, each of which gains a tap for every `dilation` positions.
        taps = 2 * (larger - smaller) // dilation
        shape = tuple(SHAPE.values())
        macs = cascade_macs(larger, shape) - cascade_macs(smaller, shape)
        assert macs == taps * channels * height * width
        params = [count_params(LSKA(channels, k)) for k in (smaller, larger)]
        assert params[1] - params[0] == taps * channels


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('kernel_size', [7, 23, 65])
def test_operations_of_the_cascade_grow_linearly_in_each_side(kernel_size, side):
    one = cascade_macs(kernel_size, grown(side, 1))
    assert [cascade_macs(kernel_size, grown(side, n)) for n in (2, 3, 5)] == [
        2 * one,
        3 * one,
        5 * one,
    ]


def test_only_the_pointwise_product_is_quadratic_in_the_channels():
    def pointwise(factor):
        shape = grown('channels', factor)
        return count_macs(LSKA(shape[0]).to('meta').conv1, meta_input(1, *shape))[0]

    assert [pointwise(n) for n in (2, 3)] == [4 * pointwise(1), 9 * pointwise(1)]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('side', SIDES)
def test_what_training_keeps_grows_linearly_in_each_side(side, backend):
    def kept(factor):
        with use_backend(backend):
            return saved_bytes(*layer_and_input(23, grown(side, factor)))

    assert [kept(2), kept(3)] == [2 * kept(1), 3 * kept(1)]


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize(
    ('backend', 'train'), [('plain', False), ('plain', True), ('cpu', True)], ids=str
)
def test_peak_memory_grows_linearly_in_each_side(side, backend, train):
    sizes = [peak(23, grown(side, n), backend, train) for n in (2, 4, 8)]
    # What is the same for all sizes, or goes with the square of the channels, is small.
    assert all(1.8 * smaller < larger < 2.2 * smaller for smaller, larger in pairwise(sizes))


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('backend', BACKENDS)
def test_inference_never_needs_more_than_a_few_maps(side, backend):
    # Slices of a fixed size make the growth uneven.
    for factor in (1, 2, 4, 8, 16):
        shape = grown(side, factor)
        assert peak(23, shape, backend, train=False) < 4 * torch.zeros(shape).nbytes


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('train', [False, True], ids=['forward', 'train'])
def test_peak_memory_does_not_grow_with_k(backend, train):
    shape = (24, 72, 66)
    found = [peak(k, shape, backend, train) for k in SIZES[3]]
    assert max(found) < 1.1 * min(found)


def peak(kernel_size: int, shape: tuple[int, int, int], backend: str, train: bool) -> int:
    """Most bytes that a pass takes at once, input and parameters left out."""
    layer, x = layer_and_input(kernel_size, shape)
    x.requires_grad_(train)

    def run():
        with use_backend(backend), torch.set_grad_enabled(train):
            out = layer(x)
        if train:
            torch.autograd.grad(out, [x, *layer.parameters()], torch.ones_like(out))

    run()
    return peak_bytes(run, torch.device('cpu'))
