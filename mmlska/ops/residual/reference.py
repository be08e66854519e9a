"""The sum by PyTorch's own operations: the truth that the other form equals."""

from collections.abc import Sequence

import torch


def run(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute the sum, see :func:`mmlska.ops.add_scaled`."""
    return x + branch * factor_of(scale, mask)


def factor_of(scale: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What a branch is multiplied with, ``(C, 1, 1)`` or, with a mask, ``(N, C, 1, 1)``."""
    factor = scale[:, None, None]
    return factor if mask is None else factor * mask


def backward(
    grad: torch.Tensor,
    dtype: torch.dtype,
    branch: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map, which is of ``dtype``, the branch and the scale, with a graph.

    ``needed`` has a flag for each; the others are None. The map itself is in none of them.
    """
    found = [None, None, None]
    if needed[0]:
        found[0] = grad.to(dtype)
    if needed[1]:
        found[1] = (grad * factor_of(scale, mask)).to(branch.dtype)
    if needed[2]:
        seen = branch if mask is None else branch * mask
        found[2] = (grad * seen).sum((0, 2, 3)).to(scale.dtype)
    return found
