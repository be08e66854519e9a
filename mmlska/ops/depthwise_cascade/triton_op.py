"""The cascade on the GPU, by two marches over a channels_last map.

See ``schedule.py`` for the order of the convolutions, ``triton_kernels.py`` for the kernels.
Forward each march reads a map and writes one, backward it reads two and writes one. For the
backward pass the input and the map between the marches are kept.
"""

import math
from collections.abc import Sequence

import torch

from .. import triton_support
from ..call_context import layout_of
from ..custom_ops import Found, KernelOperation, Tensors, dense
from ..form import Signature
from . import reference
from .schedule import plan_of

Weights = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]


def why_not(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Biases, dilations: Sequence[int]
) -> str:
    """What keeps this form from computing a cascade as the reference does; '' if nothing does."""
    reason = triton_support.why_not(x, weights, biases)
    if reason:
        return reason
    return '' if plan_of(weights, dilations) else 'there are no kernels for such a cascade'


def why_slower(call: Signature) -> str:
    """Why this form is not measured to be faster; '' if it is."""
    elements = math.prod(call.shape)
    return triton_support.why_slower(
        'depthwise_cascade', call.device, elements, call.training, call.dtype
    )


def run(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Biases,
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply the convolutions in the given order, see :func:`mmlska.ops.depthwise_cascade`."""
    return OPERATION((x, *weights, *biases), tuple(dilations))


def _split(tensors: Tensors) -> tuple[torch.Tensor, Tensors, Tensors]:
    """The map, the weights, and as many biases, of which some may be absent."""
    number = len(tensors) // 2
    return tensors[0], tensors[1 : 1 + number], tensors[1 + number :]


def _forward(
    tensors: Tensors, dilations: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The result in the layout of the map, and the map between two marches if there are two.

    All maps are ``(N, C, H, W)``.
    """
    from . import triton_kernels

    x, weights, biases = _split(tensors)
    call = _with_dense_channels(x), dense(weights), dense(biases), tuple(dilations)
    maps = triton_kernels.apply(*call)
    between = maps[1] if len(maps) == 3 else None
    return maps[-1].contiguous(memory_format=layout_of(x)), between


def _backward(
    grad: torch.Tensor,
    between: torch.Tensor | None,
    tensors: Tensors,
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> Found:
    """Gradients of the map, the weights and the biases, None where none is needed.

    ``grad``, ``between`` and the map are ``(N, C, H, W)``, see :func:`_forward`.
    """
    from . import triton_kernels

    x, weights, biases = _split(tensors)
    maps = _with_dense_channels(x), between
    call = _with_dense_channels(grad), maps, dense(weights), dense(biases)
    found = triton_kernels.differentiate(*call, tuple(dilations), tuple(needed))
    if needed[0]:
        found[0] = found[0].contiguous(memory_format=layout_of(x))
    return [
        value if value is None or value.dtype == leaf.dtype else value.to(leaf.dtype)
        for value, leaf in zip(found, tensors, strict=True)
    ]


def _with_dense_channels(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` in a layout in which the kernels are fast."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _imagine(
    tensors: Tensors, dilations: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What :func:`_forward` returns, without values."""
    x, weights, _ = _split(tensors)
    between = None
    if len(plan_of(weights, dilations)) == 2:
        between = torch.empty_like(x, memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=layout_of(x)), between


def _reference_backward(
    grad: torch.Tensor, tensors: Tensors, dilations: Sequence[int], needed: Sequence[bool]
) -> Found:
    return reference.backward(grad, *_split(tensors), dilations, needed)


OPERATION = KernelOperation('depthwise_cascade', _forward, _backward, _imagine, _reference_backward)
