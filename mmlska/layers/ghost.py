"""The modules of GhostNetV2.

"GhostNetV2: Enhance Cheap Operation with Long-Range Attention" (arXiv 2211.12905), after "GhostNet:
More Features from Cheap Operations" (arXiv 1911.11907) and "Squeeze-and-Excitation Networks" (arXiv
1709.01507); github.com/huawei-noah/Efficient-AI-Backbones at f90e129, whose folder
ghostnetv2_pytorch states no licence; the author's version in
github.com/huggingface/pytorch-image-models is Apache-2.0. Written from the papers, with the
official names of weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .build import build_norm
from .dfc_attention import DFCGate
from .input_check import check_map
from .recompute import recompute


def make_divisible(channels: float, divisor: int = 4) -> int:
    """Round to a positive multiple of ``divisor``, but never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class SqueezeExcite(nn.Module):
    """``x * hardsigmoid(expand(relu(reduce(gap(x)))))``.

    Args:
        in_channels (int): Channels of the input and output map.
        ratio (float): Channels of the reduced vector, in multiples of ``in_channels``.
    """

    def __init__(self, in_channels: int, ratio: float) -> None:
        super().__init__()
        reduced = make_divisible(in_channels * ratio)
        self.conv_reduce = nn.Conv2d(in_channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, in_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.conv_expand(F.relu(self.conv_reduce(pooled))))


class GhostModule(nn.Module):
    """``concat(y, cheap(y))`` with ``y = primary(x)``, optionally times a DFC gate of ``x``.

    ``primary`` is a 1x1 convolution to half of the channels, ``cheap`` a depth-wise 3x3 one of its
    output. An odd number of channels leaves out the last cheap one.

    Args:
        in_channels (int): Channels of the input map.
        out_channels (int): Channels of the output map.
        activate (bool): Apply a ReLU to both halves. Defaults to True.
        attention (bool): Multiply by a :class:`DFCGate`. Defaults to False.
        dilation (int): Dilation of ``cheap``, and of the gate's cells. Defaults to 1.
        norm_cfg (dict): Config of the norms. Defaults to ``dict(type='BN')``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activate: bool = True,
        attention: bool = False,
        dilation: int = 1,
        norm_cfg: dict = dict(type='BN'),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        half = (out_channels + 1) // 2

        def layers(conv: nn.Conv2d) -> nn.Sequential:
            norm = build_norm(norm_cfg, half)
            return nn.Sequential(conv, norm, nn.ReLU(inplace=True) if activate else nn.Identity())

        self.primary_conv = layers(nn.Conv2d(in_channels, half, 1, bias=False))
        self.cheap_operation = layers(
            nn.Conv2d(half, half, 3, padding=dilation, dilation=dilation, groups=half, bias=False)
        )
        self.short_conv = None
        if attention:
            self.short_conv = DFCGate(
                in_channels, out_channels, dilation=dilation, norm_cfg=norm_cfg
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, H, W)``."""
        if not torch.jit.is_scripting():
            check_map(self, x)
        primary = self.primary_conv(x)
        out = torch.cat([primary, self.cheap_operation(primary)], dim=1)[:, : self.out_channels]
        return out if self.short_conv is None else out * self.short_conv(x)


class GhostBottleneck(nn.Module):
    """A block of GhostNetV2: expand, optionally stride and squeeze-excite, project, add the input.

    The expansion is a Ghost module with activation, the projection one without. The input is
    added as it is where its shape is the output's, else after a depth-wise and a 1x1 convolution.

    Args:
        in_channels (int): Channels of the input map.
        mid_channels (int): Channels after the expansion.
        out_channels (int): Channels of the output map.
        kernel_size (int): Size of the strided depth-wise convolutions. Defaults to 3.
        stride (int): Stride; one above 1 adds a depth-wise convolution. Defaults to 1.
        se_ratio (float): Ratio of the :class:`SqueezeExcite`; 0 builds none. Defaults to 0.
        attention (bool): Give the expansion a DFC gate. Defaults to False.
        dilation (int): Dilation of everything before the stride. Defaults to 1.
        stride_to_dilation (bool): Keep the size of the map, and dilate what follows the stride
            instead. Defaults to False.
        norm_cfg (dict): Config of the norms. Defaults to ``dict(type='BN')``.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        se_ratio: float = 0.0,
        attention: bool = False,
        dilation: int = 1,
        stride_to_dilation: bool = False,
        norm_cfg: dict = dict(type='BN'),
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        step = 1 if stride_to_dilation else stride
        out_dilation = dilation * stride // step

        def norm(channels: int) -> nn.Module:
            return build_norm(norm_cfg, channels)

        def depthwise(channels: int) -> nn.Conv2d:
            padding = dilation * (kernel_size // 2)
            return nn.Conv2d(
                channels, channels, kernel_size, step, padding, dilation, channels, bias=False
            )

        self.ghost1 = GhostModule(
            in_channels, mid_channels, attention=attention, dilation=dilation, norm_cfg=norm_cfg
        )
        self.conv_dw = depthwise(mid_channels) if stride > 1 else None
        self.bn_dw = norm(mid_channels) if stride > 1 else None
        self.se = SqueezeExcite(mid_channels, se_ratio) if se_ratio > 0 else None
        self.ghost2 = GhostModule(
            mid_channels, out_channels, activate=False, dilation=out_dilation, norm_cfg=norm_cfg
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                depthwise(in_channels),
                norm(in_channels),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                norm(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H / stride), ceil(W / stride))``."""
        if torch.jit.is_scripting():
            return self._forward(x)
        elif self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        else:
            return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.ghost1(x)
        if self.conv_dw is not None:
            out = self.bn_dw(self.conv_dw(out))
        if self.se is not None:
            out = self.se(out)
        return self.ghost2(out) + self.shortcut(x)
