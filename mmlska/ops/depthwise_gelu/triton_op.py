"""A 3x3 depth-wise convolution with GELU on the GPU, see ``triton_kernels.py``.

Forward a map is read and one is written. For the backward pass the input alone is kept: what GELU
sees is computed again, its gradient is the one map that is written in between.

Compilers see one operator, ``mmlska::depthwise_gelu``, and its gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import custom_ops, triton_support
from ..call_context import is_autocast, is_compiling, layout_of, needs_gradients
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
    """Apply both, see :func:`mmlska.ops.depthwise_gelu`; there is one weight and one bias."""
    if is_autocast(x.device.type):
        x = custom_ops.as_autocast(x, x.device.type)
    if is_compiling():
        return torch.ops.mmlska.depthwise_gelu(x, *weights, *biases)
    if needs_gradients(x, *weights, *biases):
        return _ConvGELU.apply(x, *weights, *biases)
    return _forward(x, *weights, *biases)


def run_with_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> list[torch.Tensor | None]:
    """The result, and all gradients for that of the result, without PyTorch's autograd."""
    call = x, *weights, *biases
    return [_forward(*call), *_backward(grad, *call, [True] * 3)]


class _ConvGELU(torch.autograd.Function):
    """What eager calls record."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        compute = reference.backward if torch.is_grad_enabled() else _backward
        return tuple(compute(grad, *ctx.saved_tensors, ctx.needs_input_grad))


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The result of a map ``(N, C, H, W)``, in its layout."""
    from . import triton_kernels

    bias = None if bias is None else bias.contiguous()
    return triton_kernels.convolve(_dense(x), triton_kernels.taps_of(weight), bias, gelu=True)


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map ``(N, C, H, W)``, the weight and the bias, None where none is needed."""
    from . import triton_kernels

    taps, bias = triton_kernels.taps_of(weight), None if bias is None else bias.contiguous()
    x = _dense(x)
    grad = grad.contiguous(memory_format=layout_of(x))
    for_inner, sums = triton_kernels.differentiate(grad, x, taps, bias)
    found = [None, None, None]
    if needed[0]:
        # Gradients pass a convolution by its kernel turned around.
        found[0] = triton_kernels.convolve(for_inner, taps.flip(0), None, gelu=False)
    if needed[1]:
        found[1] = sums[:9].t().reshape(weight.shape).to(weight.dtype)
    if needed[2]:
        found[2] = sums[9].to(bias.dtype)
    return found


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` without gaps, in its layout."""
    return x.contiguous(memory_format=layout_of(x))


def _fake_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What :func:`_forward` returns, without values."""
    return torch.empty_like(x, memory_format=layout_of(x))


def _operator_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """Those gradients that are needed. What an operator returns shares no memory."""
    found = _backward(grad, x, weight, bias, needed)
    return [value.clone(memory_format=layout_of(value)) for value in found if value is not None]


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """What :func:`_operator_backward` returns, without values."""
    return custom_ops.empty_gradients((x, weight, bias), needed)


def _save(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    """Keep for :func:`_differentiate` what it needs."""
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the arguments of the operator."""
    needed = list(ctx.needs_input_grad)
    if torch.is_grad_enabled():
        return tuple(reference.backward(grad, *ctx.saved_tensors, needed))
    some = iter(torch.ops.mmlska.depthwise_gelu_backward(grad, *ctx.saved_tensors, needed))
    return tuple(next(some) if flag else None for flag in needed)


if custom_ops.EXIST:
    CALL = 'Tensor x, Tensor weight, Tensor? bias'
    custom_ops.define('depthwise_gelu', f'({CALL}) -> Tensor', _forward, _fake_forward)
    custom_ops.define(
        'depthwise_gelu_backward',
        f'(Tensor grad, {CALL}, bool[] needed) -> Tensor[]',
        _operator_backward,
        _fake_backward,
    )
    custom_ops.differentiate('depthwise_gelu', _differentiate, _save)
    custom_ops.cast_first('depthwise_gelu')
