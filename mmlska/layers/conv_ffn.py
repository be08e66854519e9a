"""The convolutional feed-forward network of VAN.

"Visual Attention Network" (arXiv 2202.09741);
github.com/Visual-Attention-Network/VAN-Classification at e19779b, Apache-2.0. Written from the
paper, with the official names of weights.
"""

import torch
from torch import nn

from mmlska.ops import (
    depthwise_gelu,
    in_bands,
    may_fuse_gelu,
    why_no_same_conv,
    why_watched,
)

from .build import build_activation
from .input_check import check_map
from .weight_init import init_convs

# Activations that act on each value alone.
ELEMENTWISE = (nn.GELU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish)


class ConvFFN(nn.Module):
    """The feed-forward network of VAN: 1x1, depth-wise 3x3, activation, 1x1 (arXiv 2202.09741).

    Args:
        in_channels (int): Channels of the input and output map.
        hidden_channels (int): Channels between the two 1x1 convolutions.
        act_cfg (dict): Config of the activation. Defaults to ``dict(type='GELU')``.
        drop_rate (float): Dropout after the activation and after the output. Defaults to 0.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        act_cfg: dict = dict(type='GELU'),
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.fc1 = nn.Conv2d(in_channels, hidden_channels, 1)
        self.dwconv = nn.Conv2d(
            hidden_channels, hidden_channels, 3, padding=1, groups=hidden_channels
        )
        self.act = build_activation(act_cfg)
        self.fc2 = nn.Conv2d(hidden_channels, in_channels, 1)
        self.drop = nn.Dropout(drop_rate)
        init_convs(self.fc1, self.dwconv, self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if torch.jit.is_scripting():
            return self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x))))))
        else:
            return self._forward_fast(x)

    def _forward_fast(self, x: torch.Tensor) -> torch.Tensor:
        check_map(self, x, self.fc1)
        if self.training:
            return self._forward(x)
        channels = self.hidden_channels
        return in_bands(self._forward, x, 1, channels, self.parameters(), self._why_whole)

    def _why_whole(self) -> str:
        """Why no part of a map can be computed apart; '' if it can."""
        if self.drop.training:
            return 'dropout is on'
        return (
            why_not_by_parts(self.act, self.fc1, self.fc2)
            or why_watched(self.dwconv, self.drop)
            or why_no_same_conv(self.dwconv, reach=1)
        )

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self._hidden(x))))

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """What the activation makes, ``(N, hidden_channels, H, W)``.

        Where nothing forbids it and a fast form may run, the depth-wise convolution, the activation
        and the bias of the 1x1 before them are one operation.
        """
        if (
            not isinstance(x, torch.Tensor)
            or not may_fuse_gelu(x)
            or _why_not_fused(self.fc1, self.dwconv, self.act)
        ):
            return self.act(self.dwconv(self.fc1(x)))
        mixed = nn.functional.conv2d(x, self.fc1.weight)
        return depthwise_gelu(mixed, self.dwconv.weight, self.dwconv.bias, self.fc1.bias)


def why_not_by_parts(act: nn.Module, *pointwise: nn.Module) -> str:
    """Why an activation and 1x1 convolutions need whole maps; '' if parts do as well.

    Args:
        act (nn.Module): The activation.
        *pointwise (nn.Module): The convolutions.
    """
    if type(act) not in ELEMENTWISE:
        return f'{type(act).__name__} may look at more than one value'
    return why_watched(act, *pointwise) or why_no_same_conv(*pointwise, reach=0)


def _why_not_fused(pointwise: nn.Module, conv: nn.Module, act: nn.Module) -> str:
    """Why convolutions and activation are called one by one; '' if they can be fused."""
    if torch.jit.is_tracing():
        return 'torch.jit.trace names operations by the modules that they are in'
    if type(act) is not nn.GELU or act.approximate != 'none':
        return 'the activation is not the exact GELU'
    reason = (
        why_watched(pointwise, conv, act)
        or why_no_same_conv(pointwise, reach=0)
        or why_no_same_conv(conv, depthwise=True, reach=1)
    )
    if not reason and (pointwise.kernel_size, conv.kernel_size) != ((1, 1), (3, 3)):
        return 'the kernels are not 1x1 and 3x3'
    if not reason and pointwise.groups != 1:
        return 'the 1x1 has groups'
    return reason
