"""A 3x3 depth-wise convolution, then GELU, by PyTorch's own operations: the truth."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..depthwise_cascade import reference


def run(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply both, see :func:`mmlska.ops.depthwise_gelu`.

    There is one weight, the biases are those of the convolution and of the map, ``shift``.
    """
    bias, shift = biases
    if shift is not None:
        x = x + shift.to(x.dtype)[:, None, None]
    return F.gelu(reference.run(x, weights, [bias], dilations))


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map, the weight and the biases with a graph of their own.

    ``needed`` has a flag for each; the others are None.
    """
    return reference.backward(grad, x, weights, biases, dilations, needed, run)
