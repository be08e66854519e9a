"""In which memory layout a chain of convolutions runs."""

import torch

from . import triton_support
from .call_context import (
    is_autocast,
    is_compiling,
    is_plain_tensor,
    is_transformed,
    needs_gradients,
)
from .depthwise_cascade import onednn, triton_op
from .dispatch import chosen_backend


def in_fast_layout(x: torch.Tensor, least: int = 2**16) -> torch.Tensor:
    """Put a map into the layout in which what follows is fastest, where that is known.

    On the CPU that is channels_last for float32 maps that are large enough: oneDNN's convolutions
    and a LayerNorm over the channels work on it as it is. On a GPU it is channels_last for maps
    that the kernels in Triton are chosen for, which would turn every map themselves. Layers keep
    the layout, so that one call serves a whole stage. Values do not change. The backend 'plain' of
    :func:`mmlska.ops.use_backend` leaves every map as it is.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        least (int): Elements of the smallest map for which that is faster on the CPU. Defaults to
            2**16, as measured for the blocks of VAN.

    Returns:
        Tensor: The same map, in channels_last or as it was.
    """
    if x.dim() != 4:
        return x
    if triton_support.triton_is_usable(x.device) and _is_for_triton(x):
        return x.contiguous(memory_format=torch.channels_last)
    if is_compiling() or not is_plain_tensor(x) or x.numel() < least:
        return x
    wins = onednn.is_measured(x) and not is_autocast('cpu') and not is_transformed()
    return onednn.to_channels_last(x) if wins and chosen_backend() != 'plain' else x


def _is_for_triton(x: torch.Tensor) -> bool:
    name = chosen_backend()
    if name != 'auto' or x.dtype not in triton_support.DTYPES:
        return name == 'triton' and x.dtype in triton_support.DTYPES
    if is_compiling():
        return x.device.type == 'cuda'
    wins = triton_op.wins(x, (), (), needs_gradients(x))
    return wins and is_plain_tensor(x) and not is_transformed()
