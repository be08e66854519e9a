"""CONTAINER: static and dynamic affinity, mixed in some stages or in all.

Paper: "Container: Context Aggregation Network" (NeurIPS 2021, arXiv 2106.01401). Official code:
allenai/container at commit 443be8a, MIT by its licence file and Apache-2.0 by its README. Written
from the paper and from what that code computes; the weights bear its names, but for
``patch_embed{i}.projection``, which other backbones of OpenMMLab have too.

In each stage a map passes the patch embedding and the blocks, after the last stage a norm:
:meth:`ContainerLight.forward_stage`. CONTAINER is not to be mixed up with CATNet, whose context
aggregation is :class:`mmlska.layers.ContextAggregation`.
"""

import re
import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from torch import nn

from mmlska.checkpoint.recognition import Trait, recognise_sizes
from mmlska.layers.build import build_activation, build_norm
from mmlska.layers.conv_ffn import why_not_by_parts
from mmlska.layers.input_check import check_first_conv
from mmlska.layers.layer_norm import LayerNorm2d
from mmlska.layers.mixed_affinity import attend, check_heads, values_of
from mmlska.layers.recompute import recompute
from mmlska.ops import in_bands
from mmlska.ops.call_context import is_compiling, why_observed
from mmlska.registry import MODELS

from .base import (
    ArchError,
    StagedBackbone,
    check_rates,
    drop_path_rates,
    resolve_arch,
)

SIZES = dict(embed_dims=[64, 128, 320, 512], depths=[3, 4, 8, 3], ffn_ratios=[8, 8, 4, 4])
KERNEL_SIZE = 5


class PatchEmbed(nn.Module):
    """Patch embedding without overlap: a strided convolution and a LayerNorm.

    Args:
        in_channels (int): Channels of the input map.
        embed_dims (int): Channels of the output map.
        patch_size (int): Kernel size and stride.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.norm = LayerNorm2d(embed_dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H / patch), ceil(W / patch))``.

        Zeros fill up patches that reach beyond the right or the lower border.
        """
        check_first_conv(self, x, self.projection)
        # By nothing too: tracers and exporters cannot follow a question about a size.
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        return self.norm(self.projection(F.pad(x, (0, right, 0, bottom))))


class ContainerFFN(nn.Module):
    """1x1, activation, 1x1.

    Args:
        in_channels (int): Channels of the input and output map.
        hidden_channels (int): Channels in between.
        act_cfg (dict): Config of the activation.
    """

    def __init__(self, in_channels: int, hidden_channels: int, act_cfg: dict) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        self.fc1 = nn.Conv2d(in_channels, hidden_channels, 1)
        self.act = build_activation(act_cfg)
        self.fc2 = nn.Conv2d(hidden_channels, in_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if self.training:
            return self._forward(x)
        channels = self.hidden_channels
        return in_bands(self._forward, x, 0, channels, self.parameters(), self._why_whole)

    def _why_whole(self) -> str:
        return why_not_by_parts(self.act, self.fc1, self.fc2)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ContainerBlock(nn.Module):
    """A block of CONTAINER: position encoding, aggregation and FFN, each added to its input.

    The position encoding is a depth-wise 3x3 convolution. The aggregation is ``conv2(A conv1(x))``;
    the affinity ``A`` is a depth-wise 5x5 convolution, ``attn``, or with heads the mix
    ``s A(x) + (1 - s) A`` of softmax attention and of such a convolution, ``conv``, where
    ``s = sigmoid(sa_weight)`` is learned.

    Args:
        in_channels (int): Channels of the input and output map.
        ffn_ratio (float): Hidden channels of the FFN, in multiples of ``in_channels``.
        num_heads (int): Heads of the dynamic affinity; 0 leaves it out.
        norm_cfg (dict): Config of the two norms.
        act_cfg (dict): Config of the activation of the FFN.
        drop_path_rate (float): Stochastic depth of aggregation and FFN. Defaults to 0.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        ffn_ratio: float,
        num_heads: int,
        norm_cfg: dict,
        act_cfg: dict,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.with_cp = with_cp

        def depthwise(kernel_size: int) -> nn.Conv2d:
            return nn.Conv2d(
                in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels
            )

        # Before the convolutions: mmcv's fuse_conv_bn takes a norm for that of the convolution
        # that was registered last.
        self.norm1 = build_norm(norm_cfg, in_channels)
        self.norm2 = build_norm(norm_cfg, in_channels)
        self.pos_embed = depthwise(3)
        if num_heads:
            self.conv1 = nn.Conv2d(in_channels, 3 * in_channels, 1)
            self.conv = depthwise(KERNEL_SIZE)
            self.sa_weight = nn.Parameter(torch.zeros(1))
        else:
            self.conv1 = nn.Conv2d(in_channels, in_channels, 1)
            self.attn = depthwise(KERNEL_SIZE)
        self.conv2 = nn.Conv2d(in_channels, in_channels, 1)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.mlp = ContainerFFN(in_channels, int(in_channels * ffn_ratio), act_cfg)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.conv2(self._aggregate(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _aggregate(self, x: torch.Tensor) -> torch.Tensor:
        if not self.num_heads:
            return self.attn(x)
        share = self.sa_weight.sigmoid()
        static = self.conv(values_of(x))
        return share * attend(x, self.num_heads) + (1 - share) * static


@MODELS.register_module()
class ContainerLight(StagedBackbone):
    """CONTAINER-Light (arXiv 2106.01401): three stages of static affinity, one of mixed affinity.

    Images ``(N, in_channels, H, W)`` of any size become a tuple of maps at strides 4, 8, 16 and 32,
    sides rounded up, of 64, 128, 320 and 512 channels.

    The final norm belongs to the official feature extractor, so the map of the last stage leaves
    through it; the other maps leave their stages as they are.

    Args:
        arch (str | dict): 'light', the published model; 'full', the same with mixing in every
            stage; or a dict with the lists ``embed_dims``, ``depths`` and ``ffn_ratios``, one entry
            a stage, and ``num_heads``: heads of the last stage, which alone mixes then, or a list
            of the heads of every stage, 0 for one that does not mix. Weights do not tell their
            number of heads: keep the one of the training. Defaults to 'light'.
        out_indices (Sequence[int] | int): Stages whose maps are returned, in increasing order.
            Stages beyond the last one are not built. Defaults to ``(0, 1, 2, 3)``.
        in_channels (int): Channels of the image. Defaults to 3.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the
            first. Defaults to 0.
        frozen_stages (int): Stages up to this index neither train nor update statistics; -1 freezes
            none. Defaults to -1.
        norm_eval (bool): Keep BatchNorm layers in evaluation mode. Defaults to False.
        norm_cfg (dict): Config of the norms in blocks and of the final one; the patch embeddings
            have LayerNorms. Defaults to ``dict(type='BN')``.
        act_cfg (dict): Config of the activations. Defaults to ``dict(type='GELU')``.
        with_cp (bool): Recompute the activations of the blocks in the backward pass to save memory.
            Defaults to False.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. None keeps
            PyTorch's initialisation, as the official code does. Defaults to None.
        pretrained (str, optional): Checkpoint, short for an ``init_cfg`` of type 'Pretrained': base
            models of mmseg name it so. Defaults to None.

    Raises:
        ValueError: If ``arch`` is unknown or malformed, or if an index or rate is not possible. The
            message names what is allowed.

    Warns:
        UserWarning: If a stage before the last mixes, once for every input larger than those
            before: how many positions it compares, and what memory that takes where PyTorch has no
            attention of linear memory.

    Example:
        >>> import torch
        >>> from mmlska.models import ContainerLight
        >>> model = ContainerLight().eval()
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6), (1, 512, 2, 3)]
    """

    arch_zoo = {
        'light': dict(SIZES, num_heads=16),
        # No size of the full model is published; the heads are as wide as those of the light one.
        'full': dict(SIZES, num_heads=[2, 4, 10, 16]),
    }

    def __init__(
        self,
        arch: str | dict = 'light',
        out_indices: Sequence[int] | int = (0, 1, 2, 3),
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='GELU'),
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        settings = resolve_arch(arch, self.arch_zoo, other_keys=['num_heads'])
        settings['num_heads'] = resolve_heads(settings['num_heads'], settings['embed_dims'])
        check_rates(drop_path_rate=drop_path_rate)
        depths = settings['depths']
        super().__init__(len(depths), out_indices, frozen_stages, norm_eval, init_cfg, pretrained)
        self.arch_settings = settings
        self.embed_dims = settings['embed_dims']
        self.depths = depths
        self.num_heads = settings['num_heads']
        self.largest_input = 0

        rates = drop_path_rates(drop_path_rate, depths)
        for i in range(self.num_stages):
            dims = self.embed_dims[i]
            stage_in = in_channels if i == 0 else self.embed_dims[i - 1]
            blocks = [
                ContainerBlock(
                    dims,
                    settings['ffn_ratios'][i],
                    self.num_heads[i],
                    norm_cfg,
                    act_cfg,
                    drop_path_rate=rate,
                    with_cp=with_cp,
                )
                for rate in rates[i]
            ]
            patch_embed = PatchEmbed(stage_in, dims, patch_size=4 if i == 0 else 2)
            self.add_module(f'patch_embed{i + 1}', patch_embed)
            self.add_module(f'blocks{i + 1}', nn.ModuleList(blocks))
        self.norm = None
        if self.num_stages == len(depths):
            self.norm = build_norm(norm_cfg, self.embed_dims[-1])
        self.freeze_stages()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""
        return tuple(self.embed_dims[i] for i in self.out_indices)

    def stage(self, index: int) -> list[nn.Module]:
        """Patch embedding and blocks of a stage, the first one being 0; the last has a norm too."""
        modules = [getattr(self, f'{name}{index + 1}') for name in ('patch_embed', 'blocks')]
        return [*modules, self.norm] if index == len(self.depths) - 1 else modules

    def stage_blocks(self, index: int) -> list[nn.Module]:
        """The blocks of a stage."""
        return list(getattr(self, f'blocks{index + 1}'))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Turn images into a pyramid of feature maps, see :meth:`StagedBackbone.forward`."""
        mixes_early = any(self.num_heads[: len(self.depths) - 1])
        is_seen = is_compiling() or bool(why_observed(x))
        if mixes_early and not is_seen and x.dim() == 4:
            self._warn_of_memory(x)
        return super().forward(x)

    def forward_stage(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Embed the patches, run the blocks, and normalise after the last stage."""
        patch_embed, blocks, *norms = self.stage(index)
        x = patch_embed(x)
        for block in [*blocks, *norms]:
            x = block(x)
        return x

    def _warn_of_memory(self, x: torch.Tensor) -> None:
        """Tell once for every larger input what it takes to compare all its positions."""
        n, _, height, width = x.shape
        if n * height * width <= self.largest_input:
            return
        self.largest_input = n * height * width
        sizes = affinity_bytes(self.arch_settings, x.shape, x.element_size())[: self.num_stages]
        stage = max(range(self.num_stages), key=lambda i: sizes[i])
        positions = count_positions(height, width, stage)
        training = sum(size * depth for size, depth in zip(sizes, self.depths, strict=False))
        warnings.warn(
            f'an input of {n}x{height}x{width} has {positions} positions in stage {stage + 1}, '
            f'and each is compared with each: the affinities of one block take '
            f'{sizes[stage] / 2**30:.3g} GiB, those of all blocks, kept for the backward pass, '
            f'{training / 2**30:.3g} GiB. PyTorch stores none of them where one of its fused '
            f"attention kernels can run; arch='light' mixes in the last stage only",
            stacklevel=3,
        )

    def describe_weights(self, state_dict: Mapping) -> dict[str, Trait]:
        """Architecture that the weights are of."""
        sizes = recognise_sizes(state_dict, self.num_stages)
        if not sizes or 'blocks1.0.pos_embed.weight' not in state_dict:
            return {}
        stages = range(1, len(sizes['depths']) + 1)
        mixing = [i for i in stages if f'blocks{i}.0.sa_weight' in state_dict]
        text = ', '.join(f'{key}={values}' for key, values in sizes.items())
        where = f'mixing in stages {", ".join(map(str, mixing))}' if mixing else 'without mixing'
        return {'arch': Trait(f'a CONTAINER with {text}, {where}', f'dict({text}, num_heads=...)')}

    def may_be_left_over(self, key: str) -> bool:
        """Weights of a stage beyond the last out index, and of the norm after the last stage."""
        stage = re.match(r'(?:patch_embed|blocks)(\d+)\.', key)
        if stage is None:
            return self.norm is None and key.startswith('norm.')
        return int(stage[1]) > self.num_stages


def resolve_heads(num_heads: int | Sequence[int], embed_dims: Sequence[int]) -> list[int]:
    """Heads of every stage, 0 for one without dynamic affinity.

    Raises:
        ValueError: If there is not one number a stage, or one does not divide the stage's channels.
    """
    stages = len(embed_dims)
    if isinstance(num_heads, int):
        num_heads = [*[0] * (stages - 1), num_heads]
    if not isinstance(num_heads, Sequence) or len(num_heads) != stages:
        raise ArchError(
            f'Custom arch needs num_heads for the last stage or one for each of {stages} stages, '
            f'but got {num_heads!r}'
        )
    for channels, heads in zip(embed_dims, num_heads, strict=True):
        if heads != 0:
            check_heads(channels, heads)
    return list(num_heads)


def count_positions(height: int, width: int, stage: int) -> int:
    """Positions of the map of a stage, the first one being 0, for an image of this size."""
    stride = 4 * 2**stage
    return -(-height // stride) * -(-width // stride)


def affinity_bytes(arch: Mapping, shape: Sequence[int], element_size: int) -> list[int]:
    """Size of the dynamic affinity of one block of each stage, were it stored.

    Args:
        arch (Mapping): ``num_heads`` of every stage.
        shape (Sequence[int]): Shape of the images, ``(N, C, H, W)``.
        element_size (int): Bytes of a number.
    """
    return [
        shape[0] * heads * count_positions(*shape[2:], stage) ** 2 * element_size
        for stage, heads in enumerate(arch['num_heads'])
    ]
