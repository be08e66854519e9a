"""The cascade by PyTorch's own convolutions, one by one: the truth that every other form equals."""

from collections.abc import Sequence

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
