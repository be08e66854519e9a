"""The cascade by PyTorch's own convolutions, one by one: the truth that every other form equals."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .. import onednn_defect


def run(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply the convolutions in the given order, see :func:`mmlska.ops.depthwise_cascade`."""
    for weight, bias, dilation in zip(weights, biases, dilations, strict=True):
        padding = [dilation * (size // 2) for size in weight.shape[2:]]
        if onednn_defect.is_affected(weight.shape[2:], weight, dilation):
            x = onednn_defect.convolve(x, weight, bias, padding)
        else:
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

    Every form falls back on it for gradients of gradients.

    Args:
        grad (Tensor): Gradient of the result, ``(N, C, H, W)``.
        x (Tensor): Map ``(N, C, H, W)``.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)``.
        biases (Sequence[Tensor | None]): Bias ``(C,)`` of each, or None.
        dilations (Sequence[int]): Dilation of each.
        needed (Sequence[bool]): Which gradients: of the map, of all weights, of all biases.
        run (Callable): The reference form that is differentiated. Defaults to :func:`run`.

    Returns:
        list[Tensor | None]: A gradient of the shape of each, None where none is needed.
    """
    leaves = [x, *weights, *biases]
    inputs = [tensor for tensor, flag in zip(leaves, needed, strict=True) if flag]
    # Parameters may have a higher precision than the map, as under autocast.
    x, *parameters = [None if tensor is None else tensor.to(x.dtype) for tensor in leaves]
    out = run(x, parameters[: len(weights)], parameters[len(weights) :], dilations)
    found = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
    return [next(found) if flag else None for flag in needed]
