"""Large-kernel attention on the CPU, without a pass over the memory that only moves a map.

The cascade computes in channels_last, see ``mmlska/ops/depthwise_cascade/onednn.py``. There the 1x1
convolution is a product of matrices, ``rows`` of positions by channels with the weight, and a
product can take and give its factors and its result transposed: where the map is contiguous, what
it gives is contiguous. So the way back from channels_last costs nothing. Bias and gate take what it
gave, a band of rows at a time, while that is still in the cache.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..call_context import layout_of, needs_gradients
from ..depthwise_cascade import onednn as cascade
from ..depthwise_cascade import reference as cascade_reference
from ..depthwise_cascade.arrangement import Arrangement
from ..form import Signature
from ..matrix_product import linear
from . import reference

CHANNELS_LAST = torch.channels_last
# Elements of the mixed maps that wait in the cache for the gate.
IN_BAND = 2**19
# Where PyTorch's own depth-wise kernels are fast, the 1x1 alone wins: with many channels.
LEAST_CHANNELS = 64
# Positions of a map whose gradients are mixed back together.
ROWS = 2**11
Weights = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]


def why_not(x: torch.Tensor, weights: Weights, biases: Biases, dilations: Sequence[int]) -> str:
    """What keeps this form from computing a call as the reference does; '' if nothing does."""
    reason = cascade.why_not(x, weights, biases, dilations)
    if reason:
        return reason
    channels = x.shape[1]
    if len(weights) < 2 or weights[-1].shape != (channels, channels, 1, 1):
        return 'the last kernel is not of shape (C, C, 1, 1)'
    return ''


def why_slower(call: Signature) -> str:
    """Why this form is not known to be clearly faster; '' where it was measured to be."""
    if call.device.type != 'cpu':
        return 'the map is not on the CPU'
    case = cascade.case_of(call.kernels[:-1], call.dilations[:-1], call.layout)
    if not case:
        return "PyTorch's own kernels are fast for such a cascade"
    if case.startswith('short dilated') and not call.training and call.shape[1] < LEAST_CHANNELS:
        return f'it was measured to be faster from {LEAST_CHANNELS} channels on only'
    elements = math.prod(call.shape)
    return cascade.why_not_measured(
        'large_kernel_attention', call.dtype, call.training, elements, case
    )


def run(
    x: torch.Tensor, weights: Weights, biases: Biases, dilations: Sequence[int]
) -> torch.Tensor:
    """``x * pw(cascade(x))``, see :func:`mmlska.ops.large_kernel_attention`."""
    if needs_gradients(x, *weights, *biases):
        return _Attention.apply(x, tuple(dilations), *weights, *biases)
    out = torch.empty_like(x, memory_format=layout_of(x))
    arrangement = cascade.arrange_for(x, weights[:-1], dilations[:-1], training=False)
    for images, targets in zip(cascade.in_groups(x), cascade.in_groups(out), strict=True):
        surroundings = cascade.infer(images, weights[:-1], biases[:-1], arrangement)
        surroundings = arrangement.crop_rows(surroundings)
        rows = max(1, IN_BAND // surroundings[:, :, 0].numel())
        bands = zip(*[t.split(rows, 2) for t in (images, surroundings, targets)], strict=True)
        for band, own_surroundings, target in bands:
            gate = _mix(own_surroundings, weights[-1], biases[-1], layout_of(x))
            torch.mul(band, arrangement.crop_columns(gate), out=target)
    return out


def _mix(
    x: torch.Tensor, mix: torch.Tensor, bias: torch.Tensor | None, layout: torch.memory_format
) -> torch.Tensor:
    """The 1x1 convolution of a map in channels_last, ``(N, C, H, W)`` in another layout or that."""
    if layout == CHANNELS_LAST:
        return _from_rows(linear(_rows(x), mix.flatten(1), bias), x)
    columns = linear(mix.flatten(1), _rows(x))
    if bias is not None:
        columns += bias[:, None]
    return columns.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` as rows ``(NHW, C)``, in channels_last a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _from_rows(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Rows ``(NHW, C)`` as a map in channels_last of the shape of ``x``: a view."""
    n, _, h, w = x.shape
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


class _Attention(torch.autograd.Function):
    """The attention with a backward pass that stays within the fast cases too."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dilations: tuple[int, ...], *parameters: torch.Tensor | None
    ) -> torch.Tensor:
        number = len(dilations)
        weights, biases = parameters[:number], parameters[number:]
        ctx.dilations = dilations
        ctx.arrangement = cascade.arrange_for(x, weights[:-1], dilations[:-1], training=True)
        maps = list(cascade.forward(x, weights[:-1], biases[:-1], ctx.arrangement))
        layout = layout_of(x)
        gate = _mix(maps[-1], weights[-1], biases[-1], layout)
        ctx.save_for_backward(x, gate, *parameters, *maps)
        out = torch.empty_like(x, memory_format=layout)
        return torch.mul(x, ctx.arrangement.crop(gate), out=out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, *saved = ctx.saved_tensors
        number = len(ctx.dilations)
        weights, biases, maps = saved[:number], saved[number : 2 * number], saved[2 * number :]
        needed = [flag for i, flag in enumerate(ctx.needs_input_grad) if i != 1]
        if torch.is_grad_enabled():
            call = x, weights, biases, ctx.dilations, needed
            grads = cascade_reference.backward(grad, *call, reference.run)
        else:
            grads = _backward(grad, x, gate, weights, maps, ctx.arrangement, needed)
        return grads[0], None, *grads[1:]


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor,
    weights: Weights,
    maps: Sequence[torch.Tensor],
    arrangement: Arrangement,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map, the weights and the biases, None where none is needed.

    ``gate`` is what the map was multiplied with, ``maps`` what the convolutions saw, the 1x1 last.
    """
    layout, number = layout_of(x), len(weights)
    for_gate = torch.empty_like(gate)
    torch.mul(grad, x, out=arrangement.crop(for_gate))
    arrangement.clear(for_gate)
    for_mix = for_bias = for_x = None
    if needed[number]:
        for_mix = _weight_gradient(for_gate, maps[-1])
    if needed[-1]:
        for_bias = for_gate.sum((0, 2, 3))
    earlier = [*needed[:number], *needed[1 + number : -1]]
    grads = [None] * (2 * number - 2)
    if any(earlier):
        handed_over = [_input_gradient(for_gate, weights[-1])]
        # Two maps less at the peak: neither is held while the cascade makes gradients of its own,
        # as a tuple of arguments would be.
        del for_gate
        for_x, *grads = cascade.backward(
            handed_over.pop(), weights[:-1], maps[:-1], arrangement, earlier
        )
    if needed[0]:
        for_x = cascade.in_layout(for_x, layout).addcmul_(grad, arrangement.crop(gate))
    return [for_x, *grads[: number - 1], for_mix, *grads[number - 1 :], for_bias]


def _weight_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient ``(C, C, 1, 1)`` of the 1x1 convolution from that of what it made of a map ``x``.

    Both are ``(N, C, H, W)``, the map in channels_last.
    """
    columns = grad.transpose(0, 1).flatten(1)
    return linear(columns, _rows(x).t())[:, :, None, None]


def _input_gradient(grad: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Gradient of what the 1x1 convolution saw, in channels_last, from that of what it made."""
    rows, back = _rows(grad), mix.flatten(1).t()
    found = rows.new_empty(rows.shape)
    # The product takes a copy of rows that lie apart in memory.
    for band, target in zip(rows.split(ROWS), found.split(ROWS), strict=True):
        target.copy_(linear(band, back))
    return _from_rows(found, grad)
