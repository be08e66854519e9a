"""The operation that the four kinds of large-kernel attention share."""

from collections.abc import Sequence

import torch

from ..call_context import is_compiling
from ..dispatch import Operation, choose, chosen_backend
from . import onednn, reference

ATTENTION = Operation('large_kernel_attention', reference, {'cpu': onednn})


def large_kernel_attention(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """Gate a map with its own wide surroundings: ``x * pw(cascade(x))``.

    The cascade is :func:`mmlska.ops.depthwise_cascade`, and ``pw`` a 1x1 convolution. There is a
    fast form of the whole for CPUs, chosen as that of the cascade. Elsewhere, and where it is not
    chosen, the form of the cascade is.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)`` of the cascade in the order in which
            they are applied, then that of the 1x1 convolution, ``(C, C, 1, 1)``.
        biases (Sequence[Tensor | None]): Bias ``(C,)`` of each, or None.
        dilations (Sequence[int]): Dilation of each; the last one is of no account.

    Returns:
        Tensor: Map ``(N, C, H, W)`` in the memory layout of ``x``.

    Raises:
        ValueError: If ``MMLSKA_OPS`` names no backend. The message names all.
    """
    if is_compiling() or x.device.type != 'cpu' or chosen_backend() == 'triton':
        return reference.run(x, weights, biases, dilations)
    form = choose(ATTENTION, x, weights, biases, dilations)
    return form.run(x, weights, biases, dilations)
