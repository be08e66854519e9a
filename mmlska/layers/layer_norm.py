"""Layer normalisation (arXiv 1607.06450) over the channels of a map."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    """PyTorch's LayerNorm, over the channels of each position of a map instead of the last axis.

    ``y[n, :, i, j] = (x[n, :, i, j] - mean) / sqrt(var + eps) * weight + bias``, with mean and
    variance of ``x[n, :, i, j]``. Parameters and their names are PyTorch's.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
