"""Checks of arguments: of options, which raise, and of tensors, which return a reason."""

from collections.abc import Sequence
from numbers import Integral

import torch


def check_positive_int(name: str, value: int) -> None:
    """Refuse anything but an integer from 1.

    Raises:
        ValueError: If ``value`` is another. The message names the option.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name} must be a positive integer, but got {value!r}')


def check_odd(kernel_size: int) -> None:
    """Refuse a kernel without a centre.

    Raises:
        ValueError: If ``kernel_size`` is no positive odd integer. The message names the nearest.
    """
    check_positive_int('kernel_size', kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(
            f'kernel_size={kernel_size} has no centre: it must be odd. '
            f'Nearest legal sizes: {kernel_size - 1} and {kernel_size + 1}.'
        )


def why_apart(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dtypes: Sequence[torch.dtype],
    parameter_dtypes: Sequence[torch.dtype],
) -> str:
    """What keeps a map and depth-wise kernels from belonging together; '' if nothing does.

    Where they do not, PyTorch's convolutions say best what is wrong.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)``.
        biases (Sequence[Tensor | None]): Bias ``(C,)`` of each, or None.
        dtypes (Sequence[torch.dtype]): What the map may be of.
        parameter_dtypes (Sequence[torch.dtype]): What kernels and biases may be of.
    """
    if x.dim() != 4:
        return 'the map is not of shape (N, C, H, W)'
    if x.dtype not in dtypes:
        return 'there are no kernels for the dtype of the map'
    if any(weight.dim() != 4 for weight in weights):
        return 'a kernel is not of shape (C, 1, kh, kw)'
    channels, device = x.shape[1], x.device
    for parameter in (*weights, *biases):
        if parameter is None:
            continue
        if parameter.dtype not in parameter_dtypes:
            return 'a kernel or bias is of another dtype than the map'
        if parameter.device != device or parameter.shape[0] != channels:
            return 'a kernel or bias is of another device or number of channels than the map'
    return ''
