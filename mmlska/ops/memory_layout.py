"""In which memory layout a chain of convolutions runs."""

import torch

from . import triton_support
from .call_context import (
    is_autocast,
    is_compiling,
    is_exporting,
    needs_gradients,
    why_observed,
)
from .depthwise_cascade import onednn
from .dispatch import chosen_backend, record
from .trial import why_failed


def in_fast_layout(
    x: torch.Tensor, least: int = 2**16, device_type: str | None = None
) -> torch.Tensor:
    """Put a map into the layout in which what follows is fastest, where that is known.

    On a CPU where that was measured it is channels_last for float32 maps that are large enough:
    oneDNN's convolutions and a LayerNorm over the channels work on it as it is. On a GPU it is
    channels_last for maps that the kernels in Triton are chosen for, which would turn every map
    themselves. Layers keep the layout, so that one call serves a whole stage. Values do not change.
    The backend 'plain' of :func:`mmlska.ops.use_backend` leaves every map as it is, and so do
    tracers.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        least (int): Elements of the smallest map for which that is faster on the CPU. Defaults to
            2**16, as measured for the blocks of VAN.
        device_type (str, optional): The type of device on which alone it may be done. Defaults to
            None: any.

    Returns:
        Tensor: The same map, in channels_last or as it was.
    """
    if is_compiling():
        turn = _is_faster_compiled(x, device_type)
        return x.contiguous(memory_format=torch.channels_last) if turn else x
    reason = _why_unchanged(x, least, device_type)
    record('in_fast_layout', 'unchanged' if reason else 'channels_last', x, reason)
    if reason:
        return x
    if x.device.type == 'cpu':
        return onednn.to_channels_last(x)
    return x.contiguous(memory_format=torch.channels_last)


def _why_unchanged(x: torch.Tensor, least: int, device_type: str | None) -> str:
    """Why an eager map of any shape stays in its layout; '' if it does not."""
    reason = why_observed(x)
    if reason:
        return reason
    if x.dim() != 4:
        return 'the map is not of shape (N, C, H, W)'
    if device_type not in (None, x.device.type):
        return f'the map is not on the type of device {device_type!r}'
    backend = chosen_backend()
    if backend == 'plain':
        return "the backend is 'plain'"
    if x.device.type != 'cpu' or backend == 'triton':
        reason = _why_not_for_triton(x, x.numel(), backend)
        if not reason or x.device.type != 'cpu':
            return reason
    if x.numel() < least:
        return 'the map is small'
    if is_autocast('cpu'):
        return 'autocast is on'
    return onednn.why_not_measured('in_fast_layout', x.dtype, needs_gradients(x), x.numel())


def _why_not_for_triton(x: torch.Tensor, elements: int | None, backend: str) -> str:
    """Why the kernels in Triton are not chosen for a map ``(N, C, H, W)``.

    ``elements`` are those of the map; None if a compiler asks, to which they may be a symbol.
    """
    if not triton_support.triton_is_usable(x.device):
        return 'Triton does not run on the device'
    if x.dtype not in triton_support.DTYPES:
        return 'there are no kernels for the dtype of the map'
    if backend not in ('auto', 'triton'):
        return f'the backend is {backend!r}'
    reason = ''
    if backend == 'auto':
        call = x.device, elements, needs_gradients(x), triton_support.dtype_in_use(x)
        reason = triton_support.why_slower('depthwise_cascade', *call)
    return reason or why_failed(x.device)


def _is_faster_compiled(x: torch.Tensor, device_type: str | None) -> bool:
    """Whether a compiler is to see a map in channels_last, by what it knows of it."""
    if is_exporting() or x.dim() != 4 or device_type not in (None, x.device.type):
        return False
    return not _why_not_for_triton(x, None, chosen_backend())
