"""Chains of convolutions on large maps, a band of rows at a time."""

from collections.abc import Callable, Iterable

import torch

from .call_context import is_autocast, is_compiling, needs_gradients, why_observed
from .depthwise_cascade import onednn
from .dispatch import chosen_backend, record

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
    why_whole: Callable[[], str] = str,
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
        why_whole (Callable): Tells what else keeps the map whole, '' if nothing does. Asked only
            where bands would be faster. Defaults to nothing.

    Returns:
        Tensor: Map ``(N, C, H, W)``.
    """
    if is_compiling():
        return run(x)
    reason = _why_slower(x, channels_between, parameters) or why_whole()
    record('in_bands', 'whole' if reason else 'bands', x, reason)
    if reason:
        return run(x)
    return run_in_bands(run, x, reach, channels_between)


def run_in_bands(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, reach: int, channels_between: int
) -> torch.Tensor:
    """Compute ``run(x)`` of a map ``(N, C, H, W)`` band by band, see :func:`in_bands`."""
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


def _why_slower(x: torch.Tensor, channels_between: int, parameters: Iterable[torch.Tensor]) -> str:
    """Why bands of a map ``(N, C, H, W)`` are not known to be faster; '' if they are."""
    reason = why_observed(x)
    if reason:
        return reason
    if x.dim() != 4 or channels_between * x.shape[2] * x.shape[3] < WORTHWHILE:
        return 'the map is small'
    if x.device.type != 'cpu':
        return 'the map is not on the CPU'
    if is_autocast('cpu'):
        return 'autocast is on'
    if needs_gradients(x, *parameters):
        return 'gradients are needed'
    if chosen_backend() == 'plain':
        return "the backend is 'plain'"
    return onednn.why_not_measured('in_bands', x.dtype, False, x.numel())
