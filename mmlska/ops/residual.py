"""The end of a residual branch."""

import torch

from .call_context import is_compiling, needs_gradients, why_observed
from .dispatch import chosen_backend


def add_scaled(x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x + scale * branch``, in inference in one pass over the memory.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        branch (Tensor): Map of the same shape.
        scale (Tensor): One factor a channel, ``(C,)``.

    Returns:
        Tensor: Map of the same shape.
    """
    scale = scale[:, None, None]
    # A tracer is to see the same whether gradients are on or off.
    if not is_compiling() and why_observed(x):
        return x + branch * scale
    # The gradients of the single operation take one pass more, all that it saves.
    if needs_gradients(x, branch, scale) or chosen_backend() == 'plain':
        return x + branch * scale
    return torch.addcmul(x, branch, scale)
