"""Efficient channel attention.

"ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks" (arXiv 1910.03151);
github.com/BangguWu/ECANet at b332f6b, MIT. Written from the equations, with the official names of
weights.
"""

import math
import warnings
from numbers import Real

import torch
from torch import nn

from mmlska.ops.argument_checks import check_odd, check_positive_int
from mmlska.registry import MODELS

from .input_check import check_map

# arXiv 1910.03151 compares kernels of 3, 5, 7 and 9 channels with the adaptive ones.
LONGEST_TRIED = 9


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    r"""The kernel size that ECA takes for a number of channels.

    :math:`t = \lfloor |(\log_2 C + b) / \gamma| \rfloor`, and one more where that is even: this is
    how Fig. 3 of arXiv 1910.03151 reads its equation 12. The authors' repository leaves it out.

    Args:
        channels (int): Number of channels :math:`C`.
        gamma (float): Divisor, not 0. Defaults to 2.
        b (float): Offset. Defaults to 1.

    Returns:
        int: An odd kernel size.

    Raises:
        ValueError: If ``channels`` is not a positive integer, ``gamma`` is not a positive number,
            or ``b`` is not a number.

    Example:
        >>> [adaptive_kernel_size(channels) for channels in (64, 256, 2048)]
        [3, 5, 7]
    """
    check_positive_int('channels', channels)
    if not _is_number(gamma) or gamma <= 0:
        raise ValueError(f'gamma must be a positive number such as 2, but got {gamma!r}')
    if not _is_number(b):
        raise ValueError(f'b must be a number such as 1, but got {b!r}')
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1


def _is_number(value: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_reach(kernel_size: int, channels: int) -> None:
    """Warn of a kernel that sees far more channels than ECA-Net's rule or experiments ask for.

    Such a size is mostly meant for a kernel over positions: a config that replaces an LSKA inherits
    its ``kernel_size``.

    Warns:
        UserWarning: If the kernel is longer than 9, the longest that the paper tries, and than
            what :func:`adaptive_kernel_size` says.
    """
    rule = adaptive_kernel_size(channels)
    if kernel_size > max(LONGEST_TRIED, rule):
        warnings.warn(
            f'ECA with kernel_size={kernel_size} gates each of {channels} channels by '
            f'{kernel_size} of them; its own rule takes {rule}. If the size came with a config '
            "that this one inherits from, drop it with dict(_delete_=True, type='ECA')",
            stacklevel=3,
        )


@MODELS.register_module()
class ECA(nn.Module):
    r"""Channel attention by a 1-D convolution over the channels.

    .. math:: y = x \cdot \sigma(\mathrm{conv1d}_k(\mathrm{gap}(x)))

    Every channel is scaled by a gate that sees the mean of its map and those of its
    :math:`k - 1` neighbours (ECA-Net, arXiv 1910.03151, equation 9). The layer has :math:`k`
    weights.

    Put at ``after_conv3`` of MMDetection's and MMSegmentation's ResNet its weights bear the names
    of the official ECA-ResNet, ``layer1.0.eca.conv.weight``.

    Args:
        in_channels (int): Channels of the input and output map.
        kernel_size (int, optional): Odd number of channels that a gate sees. None takes
            :func:`adaptive_kernel_size`; the published ResNets have 3, 5, 5, 7 by stage instead.
            Defaults to None.
        gamma (float): Divisor of the adaptive rule. Defaults to 2.
        b (float): Offset of the adaptive rule. Defaults to 1.

    Raises:
        ValueError: If ``in_channels`` is not a positive integer, ``kernel_size`` is even or below
            1, or ``gamma`` or ``b`` is not possible.

    Warns:
        UserWarning: If ``kernel_size`` is far longer than the rule asks for.

    Example:
        >>> ECA(256).kernel_size, ECA(256, kernel_size=3).kernel_size
        (5, 3)
    """

    _abbr_ = 'eca'

    def __init__(
        self, in_channels: int, kernel_size: int | None = None, gamma: float = 2, b: float = 1
    ) -> None:
        super().__init__()
        check_positive_int('in_channels', in_channels)
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(in_channels, gamma, b)
        else:
            check_odd(kernel_size)
            check_reach(kernel_size, in_channels)
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if not torch.jit.is_scripting():
            check_map(self, x, self.conv)
        means = x.mean((2, 3))
        gate = self.conv(means[:, None]).sigmoid()[:, 0]
        return x * gate[:, :, None, None]
