"""Chains of convolutions on large maps, a band of rows at a time."""

from collections.abc import Callable, Iterable

import torch

from .call_context import (
    is_autocast,
    is_compiling,
    is_plain_tensor,
    is_transformed,
    needs_gradients,
)
from .depthwise_cascade import onednn
from .dispatch import chosen_backend

# Elements of the widest map in between, for one image: from which number on bands win, and how many
# a band has. They stay in the processor's cache, and their memory is used again, not asked for.
WORTHWHILE = 2**20
IN_BAND = 2**19


def in_bands(
    run: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    reach: int,
    channels_between: int,
    parameters: Iterable[torch.Tensor] = (),
) -> torch.Tensor:
    """Compute ``run(x)``, for inference on the CPU band by band where that is faster.

    The rows of a band are computed from these rows and ``reach`` more on either side, so that the
    result is that of the whole map. No map in between is ever whole.

    Args:
        run (Callable): Maps ``(N, C, H, W)`` to ``(N, C, H, W)`` for any ``H``. An output depends
            on inputs of its own row and of ``reach`` rows above and below, in the same way in every
            row; rows beyond the border count as the zero padding of a convolution.
        x (Tensor): Map ``(N, C, H, W)``.
        reach (int): Rows that an output sees above and below its own.
        channels_between (int): Channels of the widest map that ``run`` makes in between.
        parameters (Iterable[Tensor]): What ``run`` would train.

    Returns:
        Tensor: Map ``(N, C, H, W)``.
    """
    if not _is_worthwhile(x, channels_between, parameters):
        return run(x)
    height = x.shape[2]
    rows = max(4 * reach, 1, IN_BAND // (channels_between * x.shape[3]))
    out = torch.empty_like(x)
    for image, target in zip(x.split(1), out.split(1), strict=True):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first = max(top - reach, 0)
            band = run(image[:, :, first : bottom + reach])
            target[:, :, top:bottom] = band[:, :, top - first : bottom - first]
    return out


def _is_worthwhile(x, channels_between, parameters):
    if is_compiling() or not is_plain_tensor(x) or x.dim() != 4:
        return False
    return (
        channels_between * x.shape[2] * x.shape[3] >= WORTHWHILE
        and onednn.is_measured(x)
        and not is_autocast('cpu')
        and not is_transformed()
        and not needs_gradients(x, *parameters)
        and chosen_backend() != 'plain'
    )
