"""GhostNetV2: cheap features, gated by decoupled fully connected attention.

Paper: "GhostNetV2: Enhance Cheap Operation with Long-Range Attention" (NeurIPS 2022, arXiv
2211.12905). Official code: huawei-noah/Efficient-AI-Backbones, ghostnetv2_pytorch, at commit
f90e129, without a licence file in that folder. Written from the paper and from what that code
computes; the weights bear its names.

Images pass ``conv_stem`` and ``bn1``, then the groups of blocks of each stage, and leave as they
are: :meth:`GhostNetV2.forward_stage`. A block is :class:`mmlska.layers.ghost.GhostBottleneck`.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import nn

from mmlska.checkpoint.recognition import Trait
from mmlska.layers.build import build_norm
from mmlska.layers.ghost import GhostBottleneck, make_divisible
from mmlska.layers.input_check import check_first_conv
from mmlska.ops import in_fast_layout
from mmlska.registry import MODELS

from .base import StagedBackbone

# Groups of blocks, numbered as in the official code; only the first block of a group has a stride.
# A block is kernel size, expanded and output channels at width 1, ratio of the squeeze-excitation,
# and stride.
GROUPS = [
    [(3, 16, 16, 0, 1)],
    [(3, 48, 24, 0, 2)],
    [(3, 72, 24, 0, 1)],
    [(5, 72, 40, 0.25, 2)],
    [(5, 120, 40, 0.25, 1)],
    [(3, 240, 80, 0, 2)],
    [
        (3, 200, 80, 0, 1),
        (3, 184, 80, 0, 1),
        (3, 184, 80, 0, 1),
        (3, 480, 112, 0.25, 1),
        (3, 672, 112, 0.25, 1),
    ],
    [(5, 672, 160, 0.25, 2)],
    [(5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1)],
]
# The number of the group after each stage; the last stage may have one more, the last convolution.
STAGE_ENDS = (3, 5, 7, 10)
LAST_CONV = len(GROUPS)
STEM_CHANNELS = 16
STAGE_CHANNELS = (24, 40, 112, 160)
LAST_CHANNELS = 960
# The official code leaves the first groups, on the largest maps, without attention.
GROUPS_WITHOUT_ATTENTION = 2
OUTPUT_STRIDES = (8, 16, 32)
PUBLISHED_WIDTHS = (1.0, 1.3, 1.6)


@MODELS.register_module()
class GhostNetV2(StagedBackbone):
    """GhostNetV2 (arXiv 2211.12905): cheap features, gated by decoupled fully connected attention.

    Images ``(N, in_channels, H, W)`` of any size become a tuple of maps at strides 4, 8, 16 and 32,
    sides rounded up. They are those of the blocks before each stride, at width 1 with 24, 40, 112
    and 160 channels. The official feature extractor goes on with a 1x1 convolution to 960 channels,
    which belongs to its classifier; ``with_last_conv`` builds it too.

    Args:
        width (float): Multiple of the channels; 1.0, 1.3 and 1.6 are published. Defaults to 1.0.
        out_indices (Sequence[int] | int): Stages whose maps are returned, in increasing order.
            Stages beyond the last one are not built. Defaults to ``(0, 1, 2, 3)``.
        frozen_stages (int): Stages up to this index neither train nor update statistics; -1 freezes
            none, 0 the stem and the first stage. Defaults to -1.
        norm_eval (bool): Keep BatchNorm layers in evaluation mode. Defaults to False.
        output_stride (int): 32, 16 or 8: no map is smaller than the image by more. What follows a
            stride that is left out is dilated, and takes the same weights. Defaults to 32.
        in_channels (int): Channels of the image. Defaults to 3.
        norm_cfg (dict): Config of the norms. Defaults to ``dict(type='BN')``.
        with_cp (bool): Recompute the activations of the blocks in the backward pass to save memory.
            Defaults to False.
        with_last_conv (bool): End the last stage with the 1x1 convolution of the classifier, to 960
            channels at width 1. Defaults to False.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. None keeps
            PyTorch's initialisation, as the official code does. Defaults to None.
        pretrained (str, optional): Checkpoint, short for an ``init_cfg`` of type 'Pretrained': base
            models of mmseg name it so. Defaults to None.

    Raises:
        ValueError: If the width, the output stride or an index is not possible. The message names
            what is allowed.

    Example:
        >>> import torch
        >>> from mmlska.models import GhostNetV2
        >>> model = GhostNetV2(1.3).eval()
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 52, 8, 12), (1, 144, 4, 6), (1, 208, 2, 3)]
    """

    def __init__(
        self,
        width: float = 1.0,
        out_indices: Sequence[int] | int = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        output_stride: int = 32,
        in_channels: int = 3,
        norm_cfg: dict = dict(type='BN'),
        with_cp: bool = False,
        with_last_conv: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        _check_width(width)
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(
                f'output_stride={output_stride!r} is not possible: '
                f'allowed are {", ".join(map(str, OUTPUT_STRIDES))}'
            )
        super().__init__(
            len(STAGE_ENDS), out_indices, frozen_stages, norm_eval, init_cfg, pretrained
        )
        if with_last_conv and self.num_stages < len(STAGE_ENDS):
            raise ValueError(
                f'with_last_conv=True ends stage {len(STAGE_ENDS) - 1}, '
                f'but the last of out_indices={self.out_indices} is {self.num_stages - 1}'
            )
        self.width = width
        self.output_stride = output_stride
        self.with_last_conv = with_last_conv
        channels = make_divisible(STEM_CHANNELS * width)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False)
        self.bn1 = build_norm(norm_cfg, channels)
        self.blocks = nn.ModuleList()
        stride = 2
        for i, blocks in enumerate(GROUPS[: STAGE_ENDS[self.num_stages - 1]]):
            group = []
            for kernel_size, expanded, out_channels, se_ratio, block_stride in blocks:
                dilation = max(1, stride // output_stride)
                stride *= block_stride
                block = GhostBottleneck(
                    channels,
                    make_divisible(expanded * width),
                    make_divisible(out_channels * width),
                    kernel_size,
                    block_stride,
                    se_ratio,
                    attention=i >= GROUPS_WITHOUT_ATTENTION,
                    dilation=dilation,
                    stride_to_dilation=stride > output_stride,
                    norm_cfg=norm_cfg,
                    with_cp=with_cp,
                )
                channels = make_divisible(out_channels * width)
                group.append(block)
            self.blocks.append(nn.Sequential(*group))
        if with_last_conv:
            last_channels = make_divisible(LAST_CHANNELS * width)
            self.blocks.append(nn.Sequential(last_conv(channels, last_channels, norm_cfg)))
        self.freeze_stages()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""
        channels = list(STAGE_CHANNELS)
        if self.with_last_conv:
            channels[-1] = LAST_CHANNELS
        return tuple(make_divisible(channels[i] * self.width) for i in self.out_indices)

    def groups(self, index: int) -> nn.ModuleList:
        """The groups of blocks of a stage, the first one being 0."""
        start = STAGE_ENDS[index - 1] if index > 0 else 0
        return self.blocks[start : STAGE_ENDS[index]]

    def stage(self, index: int) -> list[nn.Module]:
        """The groups of blocks of a stage; stage 0 has the stem too."""
        stem = [self.conv_stem, self.bn1] if index == 0 else []
        return [*stem, *self.groups(index)]

    def stage_blocks(self, index: int) -> list[nn.Module]:
        """The blocks of a stage."""
        return [block for group in self.groups(index) for block in group]

    def forward_stage(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Run the groups of blocks, and before the first the stem."""
        if index == 0:
            check_first_conv(self, x, self.conv_stem)
        # The blocks make wide maps of narrow ones: all images from 64 x 64 on were faster.
        x = in_fast_layout(x, least=2**12, device_type='cpu')
        if index == 0:
            x = F.relu(self.bn1(self.conv_stem(x)))
        for group in self.groups(index):
            x = group(x)
        return x

    def describe_weights(self, state_dict: Mapping) -> dict[str, Trait]:
        """Width that the weights are of."""
        width = recognise_width(state_dict, self.num_stages)
        if width is None:
            return {}
        sizes = ', '.join(map(str, _stage_channels(state_dict)[: self.num_stages]))
        return {'width': Trait(f'GhostNetV2 {width}x (channels {sizes})', str(width))}

    def is_head(self, key: str) -> bool:
        """Weights of the official classifier, which begins with the last convolution."""
        head = r'(conv_head|classifier|head)\.'
        if not self.with_last_conv:
            head += rf'|blocks\.{LAST_CONV}\.'
        return re.match(head, key) is not None

    def may_be_left_over(self, key: str) -> bool:
        """Weights of a stage beyond the last out index."""
        group = re.match(r'blocks\.(\d+)\.', key)
        return group is not None and int(group[1]) >= STAGE_ENDS[self.num_stages - 1]


def last_conv(in_channels: int, out_channels: int, norm_cfg: dict) -> nn.Sequential:
    """The 1x1 convolution, norm and ReLU that the official feature extractor ends with."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            bn1=build_norm(norm_cfg, out_channels),
            act1=nn.ReLU(inplace=True),
        )
    )


def recognise_width(weights: Mapping, num_stages: int | None = None) -> float | None:
    """The width of the GhostNetV2 that weights are of; None if they are of no such model.

    Args:
        weights (Mapping): Weights under the official names.
        num_stages (int, optional): Stages to look at. Defaults to None: all.
    """
    channels = _stage_channels(weights)[:num_stages]
    return _width(channels) if channels and 'conv_stem.weight' in weights else None


def _stage_channels(weights: Mapping) -> list[int]:
    """Output channels of the stages that weights are of."""
    channels = []
    for end in STAGE_ENDS:
        last = min(end, LAST_CONV) - 1
        half = weights.get(f'blocks.{last}.{len(GROUPS[last]) - 1}.ghost2.primary_conv.0.weight')
        if half is None:
            break
        channels.append(2 * len(half))
    return channels


def _width(channels: list[int]) -> float:
    """The published width that has these channels, else the one nearest to the last of them."""
    for width in PUBLISHED_WIDTHS:
        if channels == [make_divisible(c * width) for c in STAGE_CHANNELS[: len(channels)]]:
            return width
    return round(channels[-1] / STAGE_CHANNELS[len(channels) - 1], 3)


def _check_width(width: float) -> None:
    if not isinstance(width, Real) or isinstance(width, bool) or not 0 < width < math.inf:
        raise ValueError(f'width={width!r} is not possible: it must be a positive number')
