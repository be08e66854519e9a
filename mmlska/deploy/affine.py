"""The algebra of fusing: what a norm does in evaluation mode, and how convolutions take it in.

Everything is computed in float64 and rounded once. A function returns a new convolution and leaves
the one it is given as it was, for other modules may share it.
"""

import copy
from typing import NamedTuple

import torch
from mmcv.cnn.bricks import wrappers
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from mmlska.ops import is_watched

# Other kinds may compute with something else than their weight, such as a standardised one.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, wrappers.Conv2d, wrappers.Conv3d)


class Affine(NamedTuple):
    """``factor * x + shift`` for every channel, each of shape ``(C,)`` in float64."""

    factor: torch.Tensor
    shift: torch.Tensor


def is_fusible(module: nn.Module | None) -> bool:
    """Whether a module is a BatchNorm that is a fixed factor and shift in evaluation mode."""
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward is _BatchNorm.forward
        and module.running_mean is not None
        and not is_watched(module)
    )


def takes_output(conv: nn.Module | None) -> bool:
    """Whether a factor and a shift of its output can go into a module: a plain convolution."""
    return type(conv) in CONVOLUTIONS and not is_watched(conv)


def takes_input(conv: nn.Module | None) -> bool:
    """Whether a factor and a shift of its input can go in: pointwise, without a padding."""
    return (
        takes_output(conv)
        and conv.groups == 1
        and all(size == 1 for size in conv.kernel_size)
        and (conv.padding in ('same', 'valid') or not any(conv.padding))
    )


def affine_of(norm: _BatchNorm) -> Affine:
    """What a BatchNorm does in evaluation mode."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return Affine(factor, shift if norm.bias is None else shift + norm.bias.double())


def scale(factor: torch.Tensor) -> Affine:
    """A factor for every channel and no shift."""
    return Affine(factor.double(), torch.zeros_like(factor, dtype=torch.float64))


def fuse_after(conv: nn.Module, affine: Affine) -> nn.Module:
    """The convolution that computes ``factor * conv(x) + shift``."""
    weight = conv.weight.double() * _along(0, affine.factor, conv)
    return _remade(conv, weight, affine.factor * _bias(conv) + affine.shift)


def fuse_before(affine: Affine, conv: nn.Module) -> nn.Module:
    """The pointwise convolution that computes ``conv(factor * x + shift)``."""
    weight = conv.weight.double()
    bias = _bias(conv) + weight.flatten(1) @ affine.shift
    return _remade(conv, weight * _along(1, affine.factor, conv), bias)


def add_shift(conv: nn.Module, shift: torch.Tensor) -> nn.Module:
    """The convolution that computes ``conv(x) + shift``."""
    return _remade(conv, conv.weight, _bias(conv) + shift)


def hand_on_bias(conv: nn.Module, following: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The bias of a convolution in the pointwise one that follows, directly or after a sum."""
    bias = _bias(conv)
    following = fuse_before(Affine(torch.ones_like(bias), bias), following)
    return _remade(conv, conv.weight, None), following


def add_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """The depth-wise convolution that computes ``x + conv(x)``: one more at the centre."""
    weight = conv.weight.double().clone()
    row, column = (size // 2 for size in conv.kernel_size)
    weight[:, :, row, column] += 1
    return _remade(conv, weight, conv.bias)


def compose(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution that computes ``second(first(x))`` of two of them."""
    inner, outer = first.weight.double().flatten(1), second.weight.double().flatten(1)
    bias = _bias(second) + outer @ _bias(first)
    return _pointwise((outer @ inner), bias, like=second.weight)


def stack(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution with the outputs of two of them, those of the first one first."""
    weight = torch.cat([first.weight, second.weight]).flatten(1)
    return _pointwise(weight, torch.cat([_bias(first), _bias(second)]), like=first.weight)


def _pointwise(matrix: torch.Tensor, bias: torch.Tensor, like: torch.Tensor) -> nn.Conv2d:
    out_channels, in_channels = matrix.shape
    conv = nn.Conv2d(in_channels, out_channels, 1, device=like.device, dtype=like.dtype)
    return _remade(conv, matrix[:, :, None, None], bias)


def _bias(conv: nn.Module) -> torch.Tensor:
    if conv.bias is not None:
        return conv.bias.double()
    return conv.weight.new_zeros(conv.out_channels, dtype=torch.float64)


def _along(axis: int, factor: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    shape = [1] * conv.weight.dim()
    shape[axis] = -1
    return factor.view(shape)


def _remade(conv: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    remade = copy.deepcopy(conv)
    for name, value in (('weight', weight), ('bias', bias)):
        rounded = None if value is None else value.detach().to(conv.weight, copy=True)
        remade.register_parameter(name, None if rounded is None else nn.Parameter(rounded))
    return remade
