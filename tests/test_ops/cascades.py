"""Cascades to try, and their gradients."""

import torch

from mmlska.layers import decompose_kernel
from mmlska.ops import depthwise_cascade, use_backend


def shapes(kind, kernel_size):
    """Kernels and dilations of the cascades that are in use."""
    local, dilated, d = decompose_kernel(kernel_size)
    k = kernel_size
    return {
        'LSKA': ([(1, local), (local, 1), (1, dilated), (dilated, 1)], [1, 1, d, d]),
        'LKA': ([(local, local), (dilated, dilated)], [1, d]),
        'LSKATrivial': ([(1, k), (k, 1)], [1, 1]),
        'LKATrivial': ([(k, k)], [1]),
        'one row': ([(1, local)], [1]),
        'one dilated column': ([(dilated, 1)], [d]),
        'dilated rows': ([(1, dilated), (1, local)], [d, 2]),
    }[kind]


def make(kind, kernel_size, channels=3, size=(5, 6), batch=2, dtype=torch.float64):
    torch.manual_seed(0)
    kernels, dilations = shapes(kind, kernel_size)
    x = torch.randn(batch, channels, *size, dtype=dtype)
    # Scaled so that neither a weight nor the map drowns the others.
    weights = [torch.randn(channels, 1, *k, dtype=dtype) / (k[0] * k[1]) ** 0.5 for k in kernels]
    biases = [torch.randn(channels, dtype=dtype) for _ in kernels]
    return x, weights, biases, dilations


def with_gradients(backend, x, weights, biases, dilations, layout=torch.contiguous_format):
    """Output and the gradients of the map, the weights and the biases, of a fixed random loss."""
    leaves = [t.detach().clone().requires_grad_() for t in (*weights, *biases)]
    x = x.detach().clone(memory_format=layout).requires_grad_()
    with use_backend(backend):
        out = depthwise_cascade(x, leaves[: len(weights)], leaves[len(weights) :], dilations)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, [x, *leaves], grad.to(out))]


def cast(target, x, weights, biases, dilations):
    """The same in another dtype or on another device."""
    return (
        x.to(target),
        [weight.to(target) for weight in weights],
        [bias.to(target) for bias in biases],
        dilations,
    )


def relative_error(found, expected):
    scale = expected.abs().max()
    return ((found.to(expected) - expected).abs().max() / scale.clamp_min(1e-30)).item()
