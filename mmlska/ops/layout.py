"""In which memory layout a chain of convolutions runs."""

import torch

from . import cpu
from .calls import is_autocast, is_compiling, is_plain_tensor, is_transformed
from .dispatch import chosen_backend


def in_fast_layout(x: torch.Tensor, least: int = 2**16) -> torch.Tensor:
    """Put a map into the layout in which what follows is fastest, where that is known.

    On the CPU that is channels_last for float32 maps that are large enough: oneDNN's convolutions
    and a LayerNorm over the channels work on it as it is. Layers keep the layout, so that one call
    serves a whole stage. Values do not change. The backend 'plain' of
    :func:`mmlska.ops.use_backend` leaves every map as it is.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        least (int): Elements of the smallest map for which that is faster. Defaults to 2**16, as
            measured for the blocks of VAN.

    Returns:
        Tensor: The same map, in channels_last or as it was.
    """
    if is_compiling() or not is_plain_tensor(x) or x.dim() != 4 or x.numel() < least:
        return x
    wins = cpu.is_measured(x) and not is_autocast('cpu') and not is_transformed()
    return cpu.to_channels_last(x) if wins and chosen_backend() != 'plain' else x
