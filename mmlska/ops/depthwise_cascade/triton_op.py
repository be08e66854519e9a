"""The cascade on the GPU, by two marches over a channels_last map.

See ``schedule.py`` for the order of the convolutions, ``triton_kernels.py`` for the kernels.
Forward each march reads a map and writes one, backward it reads two and writes one. For the
backward pass the input and the map between the marches are kept.

Compilers see one operator, ``mmlska::depthwise_cascade``, and its gradient.
Eager calls do without it: passing an operator takes longer than a small map.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import custom_ops, triton_support
from ..call_context import is_autocast, is_compiling, layout_of, needs_gradients
from ..form import Signature
from . import reference
from .schedule import March, plan_of

Weights = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]
Found = list[torch.Tensor | None]


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
    if is_autocast(x.device.type):
        x = custom_ops.as_autocast(x, x.device.type)
    if is_compiling():
        # Lists in an operator hold no None, or autograd overlooks the rest of them.
        present = [bias for bias in biases if bias is not None]
        biased = [bias is not None for bias in biases]
        call = x, [*weights, *present], biased, list(dilations)
        return torch.ops.mmlska.depthwise_cascade(*call)[0]
    if needs_gradients(x, *weights, *biases):
        return _Cascade.apply(x, tuple(dilations), *weights, *biases)
    return _forward(x, weights, biases, dilations)[0]


def run_with_gradients(
    grad: torch.Tensor, x: torch.Tensor, weights: Weights, biases: Biases, dilations: Sequence[int]
) -> Found:
    """The result, and all gradients for that of the result, without PyTorch's autograd.

    Its threads may be waiting for the caller.
    """
    out, between = _forward(x, weights, biases, dilations)
    needed = [True] * (1 + len(weights) + len(biases))
    return [out, *_backward(grad, between, x, weights, biases, dilations, needed)]


class _Cascade(torch.autograd.Function):
    """What eager calls record."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dilations: tuple[int, ...], *parameters: torch.Tensor | None
    ) -> torch.Tensor:
        number = len(dilations)
        out, between = _forward(x, parameters[:number], parameters[number:], dilations)
        ctx.dilations = dilations
        ctx.save_for_backward(x, between, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, between, *parameters = ctx.saved_tensors
        number = len(ctx.dilations)
        call = x, parameters[:number], parameters[number:], ctx.dilations
        needed = [flag for i, flag in enumerate(ctx.needs_input_grad) if i != 1]
        if torch.is_grad_enabled():
            grads = reference.backward(grad, *call, needed)
        else:
            grads = _backward(grad, between, *call, needed)
        return grads[0], None, *grads[1:]


def _forward(
    x: torch.Tensor, weights: Weights, biases: Biases, dilations: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in the layout of the map, and the map between two marches, else an empty one.

    All maps are ``(N, C, H, W)``.
    """
    from . import triton_kernels

    marches = plan_of(weights, dilations)
    weights, biases = _dense(weights), _dense(biases)
    maps = [_with_dense_channels(x)]
    for march in marches:
        maps.append(triton_kernels.apply_march(maps[-1], march, weights, biases))
    between = maps[1] if len(marches) == 2 else x.new_empty(0)
    return maps[-1].contiguous(memory_format=layout_of(x)), between


def _backward(
    grad: torch.Tensor,
    between: torch.Tensor,
    x: torch.Tensor,
    weights: Weights,
    biases: Biases,
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> Found:
    """Gradients of the map, the weights and the biases, None where none is needed.

    ``grad``, ``between`` and ``x`` are ``(N, C, H, W)``, see :func:`_forward`.
    """
    from . import triton_kernels

    marches = plan_of(weights, dilations)
    leaves = x, *weights, *biases
    found = [None] * len(leaves)
    weights, biases = _dense(weights), _dense(biases)
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
        for value, leaf, flag in zip(found, leaves, needed, strict=True)
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
    """Make gradients of the parameters of a march from its sums, each ``(C, taps)`` or ``(C, 1)``.

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
        add(1 + march.across.index, bias[:, None] * across)
        add(1 + number + march.across.bias, (kernel.flatten(1) * across).sum(1))


def _dense(parameters: Biases) -> list[torch.Tensor | None]:
    """Weights ``(C, 1, kh, kw)`` or biases ``(C,)`` that are contiguous."""
    return [None if p is None else p.contiguous() for p in parameters]


def _with_dense_channels(x: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` in a layout in which the kernels are fast."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


# Lists in an operator hold no None, or autograd overlooks the rest of them: weights and biases are
# one list there, and flags tell which weights have a bias.


def _split(items: Sequence[Any], biased: Sequence[bool], missing: Any = None) -> tuple[Any, list]:
    """What belongs to the weights, and what to the biases where there are any."""
    number = len(biased)
    rest = iter(items[number:])
    return items[:number], [next(rest) if flag else missing for flag in biased]


def _spread_flags(needed: Sequence[bool], biased: Sequence[bool]) -> list[bool]:
    """Flags for the map, all weights, and all biases, present or not."""
    for_weights, for_biases = _split(needed[1:], biased, False)
    return [needed[0], *for_weights, *for_biases]


# Weights, then those biases that there are; for which weights there is one; dilations.
def _operator(
    x: torch.Tensor, parameters: Weights, biased: Sequence[bool], dilations: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator: see :func:`_forward`."""
    return _forward(x, *_split(parameters, biased), dilations)


def _fake_operator(
    x: torch.Tensor, parameters: Weights, biased: Sequence[bool], dilations: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`_operator` returns, without values."""
    is_pair = len(plan_of(parameters[: len(biased)], dilations)) == 2
    channels_last = torch.channels_last
    between = torch.empty_like(x, memory_format=channels_last) if is_pair else x.new_empty(0)
    return torch.empty_like(x, memory_format=layout_of(x)), between


def _operator_backward(
    grad: torch.Tensor,
    between: torch.Tensor,
    x: torch.Tensor,
    parameters: Weights,
    biased: Sequence[bool],
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """Those gradients that are needed. What an operator returns shares no memory, unlike sums."""
    call = x, *_split(parameters, biased), dilations, _spread_flags(needed, biased)
    for_x, *for_parameters = _backward(grad, between, *call)
    found = [for_x, *(None if value is None else value.clone() for value in for_parameters)]
    return [value for value in found if value is not None]


def _fake_operator_backward(
    grad: torch.Tensor,
    between: torch.Tensor,
    x: torch.Tensor,
    parameters: Weights,
    biased: Sequence[bool],
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """What :func:`_operator_backward` returns, without values."""
    return custom_ops.empty_gradients((x, *parameters), needed)


def _save(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Keep for :func:`_differentiate` what it needs."""
    x, parameters, *ctx.settings = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *parameters)


def _differentiate(
    ctx: Any, grad: torch.Tensor | None, _: None
) -> tuple[torch.Tensor | None, list[torch.Tensor | None], None, None]:
    """Gradients of the arguments of :func:`_operator`."""
    x, between, *parameters = ctx.saved_tensors
    biased, dilations = ctx.settings
    if grad is None:
        return None, [None] * len(parameters), None, None
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    if torch.is_grad_enabled():
        call = x, *_split(parameters, biased), dilations, _spread_flags(needed, biased)
        found = iter(value for value in reference.backward(grad, *call) if value is not None)
    else:
        call = grad, between, x, parameters, biased, dilations, needed
        found = iter(torch.ops.mmlska.depthwise_cascade_backward(*call))
    grads = [next(found) if flag else None for flag in needed]
    return grads[0], grads[1:], None, None


if custom_ops.EXIST:
    CALL = 'Tensor x, Tensor[] parameters, bool[] biased, int[] dilations'
    custom_ops.define(
        'depthwise_cascade', f'({CALL}) -> (Tensor, Tensor)', _operator, _fake_operator
    )
    custom_ops.define(
        'depthwise_cascade_backward',
        f'(Tensor grad, Tensor between, {CALL}, bool[] needed) -> Tensor[]',
        _operator_backward,
        _fake_operator_backward,
    )
    custom_ops.differentiate('depthwise_cascade', _differentiate, _save)
    custom_ops.cast_first('depthwise_cascade')
