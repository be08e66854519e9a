"""Large-kernel attention by PyTorch's own operations, around the cascade: the truth."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..dispatch import depthwise_cascade


def run(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """``x * pw(cascade(x))``, see :func:`mmlska.ops.large_kernel_attention`."""
    surroundings = depthwise_cascade(x, weights[:-1], biases[:-1], dilations[:-1])
    return x * F.conv2d(surroundings, weights[-1], biases[-1])
