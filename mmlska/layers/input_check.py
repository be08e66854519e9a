"""What is said where a layer gets what it cannot take."""

import torch
from torch import nn

from mmlska.ops.call_context import is_autocast, is_compiling


def check_map(layer: nn.Module, x: torch.Tensor, conv: nn.Module | None = None) -> None:
    """Refuse what is no map ``(N, C, H, W)`` of the layer's channels and number type.

    Some layers would compute nonsense, such as a gate from two axes of which one is the batch.
    The check costs below a microsecond. Tracers and compilers do not see it.

    Args:
        layer (nn.Module): Layer with ``in_channels``.
        x (Tensor): What it gets.
        conv (nn.Module, optional): A convolution of the layer that the map meets; its weight tells
            the number type. Defaults to None: the type is not checked.

    Raises:
        ValueError: If it is something else. The message says what the layer takes.
    """
    if is_compiling() or torch.jit.is_tracing() or not isinstance(x, torch.Tensor):
        return
    name = type(layer).__name__
    if x.dim() != 4 or x.shape[1] != layer.in_channels:
        hint = '; add the batch axis with x[None]' if x.dim() == 3 else ''
        raise ValueError(
            f'{name} is built for maps (N, {layer.in_channels}, H, W), '
            f'but gets {tuple(x.shape)}{hint}'
        )
    weight = conv._parameters.get('weight') if isinstance(conv, nn.Conv1d | nn.Conv2d) else None
    if weight is not None and x.dtype != weight.dtype and not is_autocast(x.device.type):
        other = f', or the layer with layer.to({x.dtype})' if x.is_floating_point() else ''
        raise ValueError(
            f'{name} has weights of {weight.dtype}, but gets a map of {x.dtype}: '
            f'convert the map with x.to({weight.dtype}){other}'
        )
