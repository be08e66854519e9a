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
    """Apply both, see :func:`mmlska.ops.depthwise_gelu`; there is one weight and one bias."""
    return F.gelu(reference.run(x, weights, biases, dilations))


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map, the weight and the bias with a graph of their own.

    ``needed`` has a flag for each; the others are None.
    """
    return reference.backward(grad, x, [weight], [bias], [1], needed, run)
