"""The convolutional feed-forward network of VAN (arXiv 2202.09741)."""

import torch
from torch import nn

from mmlska.ops import depthwise_gelu, in_bands, is_watched, may_fuse_gelu

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
            return self._forward_plain(x)
        elif not isinstance(x, torch.Tensor):
            # The symbol of torch.fx.
            return self._forward_plain(x)
        else:
            return self._forward_fast(x)

    def _forward_plain(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x))))))

    def _forward_fast(self, x: torch.Tensor) -> torch.Tensor:
        check_map(self, x, self.fc1)
        by_parts = not self.training and isinstance(self.act, ELEMENTWISE)
        if not by_parts or is_watched(*self._parts()):
            return self._forward(x)
        return in_bands(self._forward, x, 1, self.fc1.out_channels, self.parameters())

    def _parts(self) -> tuple[nn.Module, ...]:
        return self.fc1, self.dwconv, self.act, self.fc2, self.drop

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self._mix(self.fc1(x)))
        return self.drop(self.fc2(x))

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        """Depth-wise convolution and activation, in one operation where nobody watches them."""
        conv, act = self.dwconv, self.act
        if may_fuse_gelu(x.device) and _is_plain_pair(conv, act) and not is_watched(conv, act):
            return depthwise_gelu(x, conv.weight, conv.bias)
        return act(conv(x))


def _is_plain_pair(conv: nn.Module, act: nn.Module) -> bool:
    """Whether these are a convolution and the exact GELU, and no tracer wants to see them."""
    is_gelu = type(act) is nn.GELU and act.approximate == 'none'
    return type(conv) is nn.Conv2d and is_gelu and not torch.jit.is_tracing()
