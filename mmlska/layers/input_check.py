"""What is said where a layer gets what it cannot take."""

import torch
from torch import nn

from mmlska.ops.call_context import is_autocast, is_compiling, is_watched


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
    _check_channels(name, layer.in_channels, x)
    _check_dtype(name, x, conv)


def check_first_conv(block: nn.Module, x: torch.Tensor, conv: nn.Module) -> None:
    """The same for what a convolution is about to get, as the first part of a block or backbone.

    A convolution that was exchanged counts as it is; where a module of another kind stands for it,
    or a hook may change what it gets, nothing is known.

    Args:
        block (nn.Module): What the convolution is part of.
        x (Tensor): What it gets.
        conv (nn.Module): The convolution.

    Raises:
        ValueError: If it is something else. The message says what the block takes.
    """
    if is_compiling() or torch.jit.is_tracing() or not isinstance(x, torch.Tensor):
        return
    if type(conv) is nn.Conv2d and not is_watched(conv):
        _check_channels(type(block).__name__, conv.in_channels, x)
        _check_dtype(type(block).__name__, x, conv)


def _check_channels(name: str, channels: int, x: torch.Tensor) -> None:
    if x.dim() != 4 or x.shape[1] != channels:
        hint = '; add the batch axis with x[None]' if x.dim() == 3 else ''
        raise ValueError(
            f'{name} is built for maps (N, {channels}, H, W), but gets {tuple(x.shape)}{hint}'
        )


def _check_dtype(name: str, x: torch.Tensor, conv: nn.Module | None) -> None:
    weight = conv._parameters.get('weight') if isinstance(conv, nn.Conv1d | nn.Conv2d) else None
    if weight is not None and x.dtype != weight.dtype and not is_autocast(x.device.type):
        other = f', or the layer with layer.to({x.dtype})' if x.is_floating_point() else ''
        raise ValueError(
            f'{name} has weights of {weight.dtype}, but gets a map of {x.dtype}: '
            f'convert the map with x.to({weight.dtype}){other}'
        )
