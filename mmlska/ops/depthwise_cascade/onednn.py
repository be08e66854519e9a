"""The cascade on the CPU, arranged so that oneDNN meets only its fast cases.

oneDNN's depth-wise kernels are fast, forward and backward, for channels_last maps and kernels
without dilation; its weight gradients only for kernels that are one column wide. Everything else
runs ten to fifty times slower. Nothing is approximated to stay within these cases:

- In channels_last a map of ``H x W`` positions is also one of ``H/d x dW`` positions, or one of
  ``H x W/d`` positions with ``dC`` channels: the same memory, in which neighbours along one axis
  stand ``d`` apart. A 1-D kernel of dilation ``d`` has no dilation there.
- A row of a channels_last map is a map of one column, in which a horizontal kernel is vertical.

The sides are padded with zeros to multiples of the dilation, once for the cascade. That is what a
convolution sees beyond the border anyway, provided that the padding is zero again before each one.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .. import argument_checks, measured
from ..call_context import is_autocast, layout_of, needs_gradients
from ..form import Signature
from . import reference

CHANNELS_LAST = torch.channels_last
# Elements of a map that, with the maps made of it, stays in the cache. Its memory is used again for
# the next slice, where that of large maps is asked for anew, page by page.
IN_SLICE = 2**19
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
Weights = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]


def why_not(
    x: torch.Tensor,
    weights: Weights,
    biases: Biases,
    dilations: Sequence[int],
) -> str:
    """What keeps this form from computing a cascade as the reference does; '' if nothing does."""
    if x.device.type != 'cpu':
        return 'the map is not on the CPU'
    if x.numel() == 0:
        return 'the map is empty'
    if is_autocast('cpu'):
        return 'autocast is on'
    return argument_checks.why_apart(x, weights, biases, DTYPES, (x.dtype,))


def why_slower(call: Signature) -> str:
    """Why this form is not known to be clearly faster; '' where it was measured to be."""
    if call.device.type != 'cpu':
        return 'the map is not on the CPU'
    case = case_of(call.kernels, call.dilations, call.layout)
    if not case:
        return "PyTorch's own kernels are fast for such a cascade"
    elements = math.prod(call.shape)
    return why_not_measured('depthwise_cascade', call.dtype, call.training, elements, case)


def why_not_measured(
    operation: str, dtype: torch.dtype, training: bool, elements: int, case: str = ''
) -> str:
    """What differs from all that was measured on a CPU, see :mod:`mmlska.ops.measured`."""
    key = measured.Key(measured.cpu(), operation, training, case, measured.name_of(dtype))
    reason = measured.why_slower(key, elements)
    if reason:
        return reason
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return 'oneDNN is absent or turned off'
    return ''


def case_of(
    kernels: Sequence[Sequence[int]], dilations: Sequence[int], layout: torch.memory_format
) -> str:
    """Which of the cases that were measured a cascade is; '' if it is none.

    Kernels are given by height and width.
    """
    is_last = layout == CHANNELS_LAST
    effective = _effective_dilations(kernels, dilations)
    dilated = [(k, d) for k, d in zip(kernels, effective, strict=True) if d > 1]
    if dilated:
        # Forward, oneDNN is fast for dilated kernels too as long as they are short.
        if all((max(kernel) - 1) * dilation < 16 for kernel, dilation in dilated):
            return 'short dilated'
        if any(min(kernel) > 1 for kernel, _ in dilated):
            return 'long dilated squares'
        return 'long dilated lines in channels_last' if is_last else 'long dilated lines'
    if is_last:
        # The kernels are oneDNN's fast cases already, but for the gradient of a horizontal one.
        rows = any(height == 1 < width for height, width in kernels)
        return 'undilated rows in channels_last' if rows else ''
    long = all(min(kernel) == 1 for kernel in kernels) and max(map(max, kernels), default=1) > 11
    return 'long undilated lines' if long else ''


def run(
    x: torch.Tensor,
    weights: Weights,
    biases: Biases,
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply the convolutions in the given order, see :func:`mmlska.ops.depthwise_cascade`."""
    dilations = _effective_dilations([weight.shape[2:] for weight in weights], dilations)
    if needs_gradients(x, *weights, *biases):
        return _Cascade.apply(x, dilations, *weights, *biases)
    return _in_slices(x, weights, biases, dilations)


def _effective_dilations(
    kernels: Sequence[Sequence[int]], dilations: Sequence[int]
) -> tuple[int, ...]:
    """The dilations of kernels of these heights and widths: a single tap has none."""
    pairs = zip(kernels, dilations, strict=True)
    return tuple([dilation if max(kernel) > 1 else 1 for kernel, dilation in pairs])


def to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` in channels_last; itself if it is that already."""
    if not x.is_contiguous() or needs_gradients(x) or x[0].numel() < 2**16:
        return x.contiguous(memory_format=CHANNELS_LAST)
    # PyTorch transposes large matrices by blocks, but maps element by element.
    out = torch.empty_like(x, memory_format=CHANNELS_LAST)
    for image, target in zip(x.flatten(2), out.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
        target.copy_(image.t())
    return out


class _Cascade(torch.autograd.Function):
    """The cascade with a backward pass that stays within the fast cases too."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dilations: tuple[int, ...], *parameters: torch.Tensor | None
    ) -> torch.Tensor:
        number = len(dilations)
        weights, biases = parameters[:number], parameters[number:]
        out, maps = _forward(x, weights, biases, dilations, training=True)
        ctx.dilations = dilations
        ctx.save_for_backward(x, *parameters, *maps)
        return _crop(out, x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        number = len(ctx.dilations)
        weights, biases, maps = saved[:number], saved[number : 2 * number], saved[2 * number :]
        needed = [flag for i, flag in enumerate(ctx.needs_input_grad) if i != 1]
        if torch.is_grad_enabled():
            grads = reference.backward(grad, x, weights, biases, ctx.dilations, needed)
        else:
            grads = _backward(grad, x, weights, maps, ctx.dilations, needed)
        return grads[0], None, *grads[1:]


def _in_slices(
    x: torch.Tensor, weights: Weights, biases: Biases, dilations: Sequence[int]
) -> torch.Tensor:
    """The result ``(N, C, H, W)``, without gradients, by as many channels as the cache holds."""
    n, c, h, w = x.shape
    channels = max(16, IN_SLICE // (n * h * w) // 16 * 16)
    if channels >= c:
        return _crop(_forward(x, weights, biases, dilations, training=False)[0], x)
    out = torch.empty_like(x, memory_format=layout_of(x))
    for start in range(0, c, channels):
        part = slice(start, start + channels)
        own_weights = [weight[part] for weight in weights]
        own_biases = [None if bias is None else bias[part] for bias in biases]
        padded, _ = _forward(x[:, part], own_weights, own_biases, dilations, training=False)
        out[:, part] = padded[:, :, :h, :w]
    return out


def _forward(
    x: torch.Tensor, weights: Weights, biases: Biases, dilations: Sequence[int], training: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The result of a map ``(N, C, H, W)``, padded to ``(N, C, H', W')``.

    For training also the map of that size which each convolution saw.
    """
    size = x.shape[2:]
    maps = []
    current = _pad(x, _padded_size(size, weights, dilations, training))
    for i, (weight, bias, dilation) in enumerate(zip(weights, biases, dilations, strict=True)):
        if i:
            _clear_padding(current, size, weight)
        if training:
            maps.append(current)
        current = _convolve(current, weight, bias, dilation)
    return current, maps


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: Weights,
    maps: Sequence[torch.Tensor],
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the map, the weights and the biases, None where none is needed.

    ``grad`` and ``x`` are ``(N, C, H, W)``, the padded ``maps (N, C, H', W')`` those of
    :func:`_forward`.
    """
    number = len(weights)
    need_weight, need_bias = needed[1 : 1 + number], needed[1 + number :]
    for_weights, for_biases = [None] * number, [None] * number
    grad = _pad(grad, maps[0].shape[2:])
    for i in reversed(range(number)):
        for_weights[i], for_biases[i] = _parameter_gradients(
            grad, maps[i], weights[i], dilations[i], [need_weight[i], need_bias[i]]
        )
        if not (needed[0] or any(need_weight[:i]) or any(need_bias[:i])):
            return None, *for_weights, *for_biases
        grad = _input_gradient(grad, weights[i], dilations[i])
        _clear_padding(grad, x.shape[2:], weights[i])
    return _crop(grad, x), *for_weights, *for_biases


def _padded_size(
    size: Sequence[int], weights: Weights, dilations: Sequence[int], training: bool
) -> tuple[int, int]:
    """Height and width that the dilations divide, along each axis where that is needed."""

    def side(axis: int) -> int:
        divisors = [
            dilation
            for weight, dilation in zip(weights, dilations, strict=True)
            # Forward, oneDNN is fast for kernels of one column, dilated or not.
            if weight.shape[axis] > 1 and (training or weight.shape[3] > 1)
        ]
        multiple = math.lcm(1, *divisors)
        return -(-size[axis - 2] // multiple) * multiple

    return side(2), side(3)


def _pad(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The map ``(N, C, H, W)`` in channels_last with zeros up to the size ``(H', W')``.

    The map itself if there is nothing to do.
    """
    height, width = x.shape[2:]
    if (height, width) == tuple(size):
        return to_channels_last(x)
    if x.is_contiguous():
        x = to_channels_last(x)
    padded = torch.empty(
        (*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST
    )
    padded[:, :, :height, :width] = x
    padded[:, :, height:] = 0
    padded[:, :, :height, width:] = 0
    return padded


def _clear_padding(padded: torch.Tensor, size: Sequence[int], weight: torch.Tensor) -> None:
    """Make ``(N, C, H', W')`` zero beyond the size ``(H, W)`` along the axes of a kernel."""
    if weight.shape[2] > 1 and padded.shape[2] > size[0]:
        padded[:, :, size[0] :] = 0
    if weight.shape[3] > 1 and padded.shape[3] > size[1]:
        padded[:, :, :, size[1] :] = 0


def _crop(padded: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of ``(N, C, H', W')`` of the size and in the layout of a map ``(N, C, H, W)``."""
    cropped = padded[:, :, : like.shape[2], : like.shape[3]]
    return cropped.contiguous(memory_format=layout_of(like))


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int
) -> torch.Tensor:
    """One convolution of a map ``(N, C, H', W')`` in channels_last."""
    if weight.shape[3] == 1:
        return reference.run(x, [weight], [bias], [dilation])
    view = _undilate(x, weight, dilation)
    repeats = view.shape[1] // x.shape[1]
    weight_there = weight.repeat(repeats, 1, 1, 1)
    bias_there = None if bias is None else bias.repeat(repeats)
    return _redilate(reference.run(view, [weight_there], [bias_there], [1]), x, weight)


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """Gradient ``(N, C, H', W')`` of what a convolution saw, from that of what it made."""
    view = _undilate(grad, weight, dilation)
    weight_there = weight.repeat(view.shape[1] // grad.shape[1], 1, 1, 1)
    found = _convolution_backward(view, view, weight_there, [True, False, False])[0]
    return _redilate(found, grad, weight)


def _parameter_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    dilation: int,
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of weight and bias, from maps in which a 1-D kernel is one column wide.

    ``grad`` and ``x``, what the convolution made and saw, are ``(N, C, H', W')``; ``needed`` has a
    flag for the weight and one for the bias.
    """
    horizontal = weight.shape[2] == 1
    undilate = _rows if horizontal else _undilate
    grad, x = (undilate(t, weight, dilation) for t in (grad, x))
    upright = weight.transpose(2, 3) if horizontal else weight
    # oneDNN leaves its fast case also where the kernel is longer than the map.
    missing = [max(0, upright.shape[axis] - x.shape[axis]) for axis in (3, 2)]
    if any(missing):
        grad, x = (F.pad(t, (0, missing[0], 0, missing[1])) for t in (grad, x))
    _, for_weight, for_bias = _convolution_backward(grad, x, upright, [False, *needed])
    if horizontal and for_weight is not None:
        for_weight = for_weight.transpose(2, 3)
    return for_weight, for_bias


def _convolution_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, needed: Sequence[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of map ``(N, C, H, W)``, kernel ``(C, 1, kh, kw)`` and bias, without dilation."""
    channels = len(weight)
    reach = [size // 2 for size in weight.shape[2:]]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [1, 1], reach, [1, 1], False, [0, 0], channels, needed
    )


def _undilate(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The map in which a kernel of dilation ``d`` has none; 1-D kernels need no copy.

    A map ``(N, C, H, W)`` becomes ``(N, dC, H, W/d)`` for a row, ``(N, C, H/d, dW)`` for a column,
    ``(ddN, C, H/d, W/d)`` for a rectangle.
    """
    if dilation == 1:
        return x
    n, c, h, w = x.shape
    d = dilation
    last = x.permute(0, 2, 3, 1)
    if weight.shape[2] == 1:
        last = last.reshape(n, h, w // d, d * c)
    elif weight.shape[3] == 1:
        last = last.reshape(n, h // d, d * w, c)
    else:
        last = last.reshape(n, h // d, d, w // d, d, c).permute(0, 2, 4, 1, 3, 5)
        last = last.reshape(n * d * d, h // d, w // d, c)
    return last.permute(0, 3, 1, 2)


def _redilate(view: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Undo :func:`_undilate` for a map of the shape ``(N, C, H, W)`` of ``x``."""
    n, c, h, w = x.shape
    last = view.permute(0, 2, 3, 1)
    if weight.shape[2] > 1 and weight.shape[3] > 1:
        d = h // view.shape[2]
        last = last.reshape(n, d, d, h // d, w // d, c).permute(0, 3, 1, 4, 2, 5)
    return last.reshape(n, h, w, c).permute(0, 3, 1, 2)


def _rows(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """Each row as a map of ``d`` columns, in which a horizontal kernel is vertical.

    A map ``(N, C, H, W)`` becomes ``(NH, C, W/d, d)``; the kernel is not looked at.
    """
    n, c, h, w = x.shape
    last = x.permute(0, 2, 3, 1).reshape(n * h, w // dilation, dilation, c)
    return last.permute(0, 3, 1, 2)
