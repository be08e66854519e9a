"""The cascade on the CPU, arranged so that oneDNN meets only its fast cases.

oneDNN's depth-wise kernels are fast, forward and backward, for channels_last maps and kernels
without dilation; its weight gradients only for kernels that are one column wide. Everything else
runs ten to fifty times slower. Nothing is approximated to stay within these cases:

- A dilated kernel is one without dilation on another view of the map, see ``arrangement.py``.
- A row of a channels_last map is a map of one column, in which a horizontal kernel is vertical.

``mmlska/ops/large_kernel_attention/onednn.py`` builds on :func:`infer`, :func:`forward` and
:func:`backward`.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .. import argument_checks, measured
from ..call_context import is_autocast, layout_of, needs_gradients
from ..form import Signature
from . import reference
from .arrangement import (
    Arrangement,
    arrange,
    effective_dilations,
    is_short,
    redilate,
    rows_of,
    undilate,
)

CHANNELS_LAST = torch.channels_last
# Elements of the images that are computed together without gradients, if there are several. They
# stay in the cache, and their memory is used again for the next ones.
IN_GROUP = 2**19
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
    effective = effective_dilations(kernels, dilations)
    dilated = [(k, d) for k, d in zip(kernels, effective, strict=True) if d > 1]
    if dilated:
        if all(is_short(*pair) for pair in dilated):
            return 'short dilated in channels_last' if is_last else 'short dilated'
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
    if needs_gradients(x, *weights, *biases):
        return _Cascade.apply(x, tuple(dilations), *weights, *biases)
    arrangement = arrange_for(x, weights, dilations, training=False)
    out = torch.empty_like(x, memory_format=layout_of(x))
    for images, target in zip(in_groups(x), in_groups(out), strict=True):
        target.copy_(arrangement.crop(infer(images, weights, biases, arrangement)))
    return out


def in_groups(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The map ``(N, C, H, W)`` by as many images as the cache holds, at least one."""
    return x.split(max(1, IN_GROUP // x[0].numel()))


def arrange_for(
    x: torch.Tensor, weights: Weights, dilations: Sequence[int], training: bool
) -> Arrangement:
    """The arrangement of a cascade for a map ``(N, C, H, W)``."""
    kernels = tuple([weight.shape[2:] for weight in weights])
    return arrange(x.shape[2:], kernels, tuple(dilations), training)


def to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` in channels_last; itself if it is that already."""
    is_last = x.is_contiguous(memory_format=CHANNELS_LAST)
    if is_last or not x.is_contiguous() or not _is_turned_by_shuffling(x):
        return x.contiguous(memory_format=CHANNELS_LAST)
    n, c, h, w = x.shape
    return _transposed(x, c).view(n, h, w, c).permute(0, 3, 1, 2)


def in_layout(x: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """A map ``(N, C, H, W)`` in channels_last in a layout; itself if it is in that already."""
    is_last = layout_of(x) == CHANNELS_LAST
    if layout == CHANNELS_LAST or not is_last or not _is_turned_by_shuffling(x):
        return x.contiguous(memory_format=layout)
    return _transposed(x, x.shape[2] * x.shape[3]).view(x.shape)


def _is_turned_by_shuffling(x: torch.Tensor) -> bool:
    # Smaller maps take as long either way.
    return x.dtype == torch.float32 and x[0].numel() >= 2**14 and not needs_gradients(x)


def _transposed(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Memory of the images of a map, taken for matrices of so many rows, with these transposed.

    That is what shuffling channels in as many groups is, which PyTorch does with vector
    instructions where channels stand last. Its copies between layouts go element by element.
    """
    size = x[0].numel()
    channels = x.as_strided((len(x), size, 1, 1), (size, 1, size, size))
    return torch.native_channel_shuffle(channels, rows)


class _Cascade(torch.autograd.Function):
    """The cascade with a backward pass that stays within the fast cases too."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dilations: tuple[int, ...], *parameters: torch.Tensor | None
    ) -> torch.Tensor:
        number = len(dilations)
        weights, biases = parameters[:number], parameters[number:]
        ctx.dilations = dilations
        ctx.arrangement = arrange_for(x, weights, dilations, training=True)
        *maps, out = forward(x, weights, biases, ctx.arrangement)
        ctx.save_for_backward(x, *parameters, *maps)
        return ctx.arrangement.crop(out).contiguous(memory_format=layout_of(x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        number = len(ctx.dilations)
        weights, biases, maps = saved[:number], saved[number : 2 * number], saved[2 * number :]
        needed = [flag for i, flag in enumerate(ctx.needs_input_grad) if i != 1]
        if torch.is_grad_enabled():
            grads = reference.backward(grad, x, weights, biases, ctx.dilations, needed)
            return grads[0], None, *grads[1:]
        grad = ctx.arrangement.pad(to_channels_last(grad))
        grads = backward(grad, weights, maps, ctx.arrangement, needed)
        if grads[0] is not None:
            grads[0] = in_layout(grads[0], layout_of(x))
        return grads[0], None, *grads[1:]


def infer(
    x: torch.Tensor, weights: Weights, biases: Biases, arrangement: Arrangement
) -> torch.Tensor:
    """The result of :func:`forward` alone. Each map on the way is freed as soon as it was seen."""
    return deque(forward(x, weights, biases, arrangement), maxlen=1).pop()


def forward(
    x: torch.Tensor, weights: Weights, biases: Biases, arrangement: Arrangement
) -> Iterator[torch.Tensor]:
    """What each convolution of a map ``(N, C, H, W)`` sees, and last the result; channels_last.

    They have the margins of the arrangement from its first undilated convolution on.
    """
    first = arrangement.first
    current = to_channels_last(x)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if i >= first:
            current = arrangement.pad(current)
            arrangement.clear(current, _axes(weight))
        yield current
        more = arrangement.padding if i == first - 1 else (0, 0)
        how = arrangement.dilations[i], arrangement.undilated[i], more
        current = _convolve(current, weight, bias, *how)
    yield current


def backward(
    grad: torch.Tensor,
    weights: Weights,
    maps: Sequence[torch.Tensor],
    arrangement: Arrangement,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map, the weights and the biases, None where none is needed.

    ``maps`` are those of :func:`forward`, without the result. ``grad``, that of the result, has its
    margins, which are zero; both are in channels_last.
    """
    number, dilations = len(weights), arrangement.dilations
    need_weight, need_bias = needed[1 : 1 + number], needed[1 + number :]
    for_weights, for_biases = [None] * number, [None] * number
    for i in reversed(range(number)):
        if i == arrangement.first - 1:
            # A copy: oneDNN is slow where the gradient has margins that the map has not.
            grad = to_channels_last(arrangement.crop(grad))
        for_weights[i], for_biases[i] = _parameter_gradients(
            grad, maps[i], weights[i], dilations[i], [need_weight[i], need_bias[i]]
        )
        if not (needed[0] or any(need_weight[:i]) or any(need_bias[:i])):
            return [None, *for_weights, *for_biases]
        grad = _input_gradient(grad, weights[i], dilations[i])
        if i >= arrangement.first:
            arrangement.clear(grad, _axes(weights[i]))
    grad = grad if arrangement.first else arrangement.crop(grad)
    return [grad, *for_weights, *for_biases]


def _axes(weight: torch.Tensor) -> list[int]:
    """The axes of a map along which a kernel reaches."""
    return [axis for axis in (2, 3) if weight.shape[axis] > 1]


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dilation: int,
    undilated: bool,
    more: Sequence[int],
) -> torch.Tensor:
    """One convolution of a map in channels_last, with more padding than keeps its size."""
    kernel, channels = weight.shape[2:], len(weight)
    if not undilated or kernel[1] == 1:
        padding = [dilation * (k // 2) + m for k, m in zip(kernel, more, strict=True)]
        return F.conv2d(x, weight, bias, 1, padding, dilation, channels)
    view = undilate(x, kernel, dilation)
    repeats = view.shape[1] // channels
    weight = weight.repeat(repeats, 1, 1, 1)
    bias = None if bias is None else bias.repeat(repeats)
    padding = [k // 2 for k in kernel]
    return redilate(F.conv2d(view, weight, bias, 1, padding, 1, len(weight)), x, kernel)


def _input_gradient(grad: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """Gradient ``(N, C, H', W')`` of what a convolution saw, from that of what it made."""
    view = undilate(grad, weight.shape[2:], dilation)
    weight_there = weight.repeat(view.shape[1] // grad.shape[1], 1, 1, 1)
    found = _convolution_backward(view, view, weight_there, [True, False, False])[0]
    return redilate(found, grad, weight.shape[2:])


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
    if horizontal:
        grad, x = rows_of(grad, dilation), rows_of(x, dilation)
    else:
        grad, x = (undilate(t, weight.shape[2:], dilation) for t in (grad, x))
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
