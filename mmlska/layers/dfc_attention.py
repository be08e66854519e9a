"""The decoupled fully connected (DFC) attention of GhostNetV2.

"GhostNetV2: Enhance Cheap Operation with Long-Range Attention" (arXiv 2211.12905);
github.com/huawei-noah/Efficient-AI-Backbones at f90e129, whose folder ghostnetv2_pytorch states no
licence; the author's version in github.com/huggingface/pytorch-image-models is Apache-2.0. Written
from the paper, with the official names of weights.
"""

from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from mmlska.ops import in_right_layout
from mmlska.ops.argument_checks import check_odd, check_positive_int
from mmlska.registry import MODELS

from .build import build_norm
from .input_check import check_map


class DFCGate(nn.Sequential):
    """The gate ``up(sigmoid(v(h(pw(pool(x))))))`` between 0 and 1.

    ``pool`` averages cells of 2x2 positions, ``pw`` is a 1x1 convolution, ``h`` and ``v`` are
    depth-wise 1xk and kx1 convolutions over the cells; each has a norm, none a bias or an
    activation. The sigmoid comes before the nearest up-sampling to the size of ``x``. A last row or
    column that fills no cell takes part in none, as in the official code.

    The layers bear the numbers that they have in the official ``short_conv``. In training too, a
    BatchNorm normalises a batch of a single cell, which has no statistics, by the running ones.

    Args:
        in_channels (int): Channels of the input map.
        out_channels (int): Channels of the gate.
        kernel_size (int): Odd number of cells that ``h`` and ``v`` see. Defaults to 5.
        dilation (int): Positions of the map for each one at the resolution that the weights are
            made for. The cells grow with it, so that they cover the same part of the image.
            Defaults to 1.
        norm_cfg (dict): Config of the norms. Defaults to ``dict(type='BN')``.

    Raises:
        ValueError: If ``kernel_size`` is not odd.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 5,
        dilation: int = 1,
        norm_cfg: dict = dict(type='BN'),
    ) -> None:
        check_odd(kernel_size)
        reach = kernel_size // 2
        along = dict(groups=out_channels, bias=False)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            build_norm(norm_cfg, out_channels),
            nn.Conv2d(out_channels, out_channels, (1, kernel_size), padding=(0, reach), **along),
            build_norm(norm_cfg, out_channels),
            nn.Conv2d(out_channels, out_channels, (kernel_size, 1), padding=(reach, 0), **along),
            build_norm(norm_cfg, out_channels),
        )
        self.in_channels = in_channels
        self.cell = 2 * dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C_in, H, W)`` to the gate ``(N, C_out, H, W)``."""
        gate = pool_cells(x, self.cell)
        if torch.jit.is_scripting():
            for layer in self:
                gate = layer(gate)
        else:
            gate = self._mix_cells(gate)
        return F.interpolate(gate.sigmoid(), size=x.shape[2:], mode='nearest')

    def _mix_cells(self, x: torch.Tensor) -> torch.Tensor:
        """Pointwise, row and column convolution, each with its norm."""
        is_single = isinstance(x, torch.Tensor) and x.shape[0] * x.shape[2] * x.shape[3] == 1
        # A derived class may register more modules; the gate consists of the first six.
        for layer in islice(self, 6):
            if isinstance(layer, nn.Conv2d) and isinstance(x, torch.Tensor):
                x = in_right_layout(x, layer)
            is_batch_norm = isinstance(layer, nn.BatchNorm2d)
            x = normalize_by_running(layer, x) if is_single and is_batch_norm else layer(x)
        return x


def pool_cells(x: torch.Tensor, cell: int) -> torch.Tensor:
    """Average ``cell`` times ``cell`` positions; a side shorter than a cell is one cell."""
    if not isinstance(x, torch.Tensor):
        # The symbol of torch.fx has no sizes to compare with. Its graph refuses shorter sides.
        return F.avg_pool2d(x, cell)
    return F.avg_pool2d(x, [min(cell, x.shape[2]), min(cell, x.shape[3])])


def normalize_by_running(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """What a BatchNorm in evaluation mode does."""
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, eps=norm.eps
    )


@MODELS.register_module()
class DFCAttention(nn.Module):
    """DFC attention: ``x * up(sigmoid(v(h(pw(avgpool2(x))))))`` (GhostNetV2, arXiv 2211.12905).

    The gate is that of the official Ghost modules, see :class:`DFCGate`, and takes their weights
    ``short_conv.*``. Where their pooling fails, on a side of one position, that side is not pooled.

    Args:
        in_channels (int): Channels of the input and output map.
        kernel_size (int): Odd size of the two 1-D kernels, in cells of 2x2 positions.
            Defaults to 5.
        norm_cfg (dict): Config of the norms of the gate. Defaults to ``dict(type='BN')``.

    Raises:
        ValueError: If ``kernel_size`` is not a positive odd integer.
    """

    _abbr_ = 'dfc_attention'

    def __init__(
        self, in_channels: int, kernel_size: int = 5, norm_cfg: dict = dict(type='BN')
    ) -> None:
        super().__init__()
        check_positive_int('in_channels', in_channels)
        self.in_channels = in_channels
        self.short_conv = DFCGate(in_channels, in_channels, kernel_size, norm_cfg=norm_cfg)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the map ``x`` of shape ``(N, C, H, W)`` with its rows and columns."""
        if not torch.jit.is_scripting():
            check_map(self, x, next(iter(self.short_conv)))
        return x * self.short_conv(x)
