"""The cascade on the GPU, by two marches over a channels_last map.

See ``schedule.py`` for the order of the convolutions, ``triton_kernels.py`` for the kernels.
Forward each march reads a map and writes one, backward it reads two and writes one. For the
backward pass the input and the map between the marches are kept.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import triton_support
from ..call_context import layout_of
from ..custom_ops import Found, KernelOperation, Tensors, dense
from ..form import Signature
from . import reference
from .schedule import March, plan_of

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
    marches = plan_of(weights, dilations)
    weights, biases = dense(weights), dense(biases)
    maps = [_with_dense_channels(x)]
    for march in marches:
        maps.append(triton_kernels.apply_march(maps[-1], march, weights, biases))
    between = maps[1] if len(marches) == 2 else None
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
    marches = plan_of(weights, dilations)
    found = [None] * len(tensors)
    weights, biases = dense(weights), dense(biases)
    grad = _with_dense_channels(grad)
    for i, march in reversed(list(enumerate(marches))):
        earlier = [place for before in marches[:i] for place in _parameters(before, found)]
        before = needed[0] or any(needed[place] for place in earlier)
        own = any(needed[place] for place in _parameters(march, found))
        seen = between if i else _with_dense_channels(x)
        call = grad, seen, march, weights, biases
        grad, sums = triton_kernels.differentiate_march(*call, before, own)
        if own:
            _add(found, march, sums, weights, biases)
        if not before:
            break
    found[0] = grad.contiguous(memory_format=layout_of(x)) if needed[0] else None
    return [
        value.reshape(leaf.shape).to(leaf.dtype) if flag else None
        for value, leaf, flag in zip(found, tensors, needed, strict=True)
    ]


def _parameters(march: March, found: Sequence[Any]) -> Iterator[int]:
    """Places of the parameters of a march behind the map: all weights, then all biases."""
    number = len(found) // 2
    convs = [conv for conv in (march.first, march.second, march.across) if conv]
    for conv in convs:
        yield 1 + conv.index
        if conv.bias is not None:
            yield 1 + number + conv.bias


def _add(
    found: Found,
    march: March,
    sums: Sequence[torch.Tensor],
    weights: Weights,
    biases: Biases,
) -> None:
    """Make gradients of the parameters of a march from its sums, each ``(C taps,)`` or ``(C,)``.

    They are added to ``found``, where they have their places.
    """
    first, first_bias, second, second_bias, across = sums
    number = len(weights)

    def add(place: int, value: torch.Tensor) -> None:
        found[place] = value if found[place] is None else found[place] + value

    add(1 + march.first.index, first)
    add(1 + number + march.first.bias, first_bias)
    if march.second:
        add(1 + march.second.index, second)
        if march.second.bias is not None:
            add(1 + number + march.second.bias, second_bias)
    if across.numel():
        # Each tap of the convolution that was moved sees the bias wherever it meets the map.
        kernel, bias = weights[march.across.index], biases[march.across.bias]
        across = across.view(len(bias), -1)
        add(1 + march.across.index, (bias[:, None] * across).flatten())
        add(1 + number + march.across.bias, (kernel.flatten(1) * across).sum(1))


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
