"""A 3x3 depth-wise convolution with GELU on the GPU, see ``triton_kernels.py``.

Forward a map is read and one is written. For the backward pass the input alone is kept: what GELU
sees is computed again, its gradient is the one map that is written in between.
"""

import math
from collections.abc import Sequence

import torch

from .. import triton_support
from ..call_context import layout_of
from ..custom_ops import Found, KernelOperation, Tensors, dense
from ..form import Signature
from . import reference


def why_not(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> str:
    """What keeps this form from the convolution of a map ``(N, C, H, W)``, then GELU."""
    if weights[0].shape[1:] != (1, 3, 3):
        return 'the kernel is not a depth-wise one of 3x3'
    return triton_support.why_not(x, weights, biases)


def why_slower(call: Signature) -> str:
    """Why this form is not measured to be faster; '' if it is."""
    elements = math.prod(call.shape)
    return triton_support.why_slower(
        'depthwise_gelu', call.device, elements, call.training, call.dtype
    )


def run(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply both, see :func:`mmlska.ops.depthwise_gelu`; of one weight and two biases."""
    return OPERATION((x, *weights, *biases), tuple(dilations))


def _forward(tensors: Tensors, dilations: Sequence[int]) -> tuple[torch.Tensor, None]:
    """The result of a map ``(N, C, H, W)``, in its layout. Nothing but the tensors is kept."""
    from . import triton_kernels

    x, weight, *biases = tensors
    taps = triton_kernels.taps_of(weight)
    return triton_kernels.convolve(_without_gaps(x), taps, *dense(biases), gelu=True), None


def _backward(
    grad: torch.Tensor,
    kept: None,
    tensors: Tensors,
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> Found:
    """Gradients of the map ``(N, C, H, W)``, the weight and the biases, None where unneeded."""
    from . import triton_kernels

    x, weight, *biases = tensors
    taps, x = triton_kernels.taps_of(weight), _without_gaps(x)
    grad = grad.contiguous(memory_format=layout_of(x))
    for_inner, sums = triton_kernels.differentiate(grad, x, taps, *dense(biases))
    found = [None] * len(tensors)
    if needed[0]:
        # Gradients pass a convolution by its kernel turned around.
        found[0] = triton_kernels.convolve(for_inner, taps.flip(0), None, None, gelu=False)
    if needed[1]:
        found[1] = sums[:9].t().reshape(weight.shape).to(weight.dtype)
    for place, row in ((2, 9), (3, 10)):
        if needed[place]:
            found[place] = sums[row].to(tensors[place].dtype)
    return found


def _imagine(tensors: Tensors, dilations: Sequence[int]) -> tuple[torch.Tensor, None]:
    """What :func:`_forward` returns, without values."""
    return torch.empty_like(tensors[0], memory_format=layout_of(tensors[0])), None


def _without_gaps(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)``, dense in its layout."""
    return x.contiguous(memory_format=layout_of(x))


def _reference_backward(
    grad: torch.Tensor, tensors: Tensors, dilations: Sequence[int], needed: Sequence[bool]
) -> Found:
    x, weight, *biases = tensors
    return reference.backward(grad, x, [weight], biases, dilations, needed)


OPERATION = KernelOperation('depthwise_gelu', _forward, _backward, _imagine, _reference_backward)
