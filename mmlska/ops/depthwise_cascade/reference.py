"""The cascade by PyTorch's own convolutions, one by one: the truth that every other form equals."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def run(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply the convolutions in the given order, see :func:`mmlska.ops.depthwise_cascade`."""
    for weight, bias, dilation in zip(weights, biases, dilations, strict=True):
        padding = [dilation * (size // 2) for size in weight.shape[2:]]
        x = F.conv2d(x, weight, bias, 1, padding, dilation, weight.shape[0])
    return x


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
    needed: Sequence[bool],
    run: Callable[..., torch.Tensor] = run,
) -> list[torch.Tensor | None]:
    """Gradients of the map, the weights and the biases with a graph of their own.

    Every form falls back on it for gradients of gradients. ``needed`` has a flag for each; the
    others are None. ``run`` is the plain form to differentiate.
    """
    leaves = [x, *weights, *biases]
    inputs = [tensor for tensor, flag in zip(leaves, needed, strict=True) if flag]
    # Parameters may have a higher precision than the map, as under autocast.
    x, *parameters = [None if tensor is None else tensor.to(x.dtype) for tensor in leaves]
    out = run(x, parameters[: len(weights)], parameters[len(weights) :], dilations)
    found = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
    return [next(found) if flag else None for flag in needed]
