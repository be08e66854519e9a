"""VAN with any attention of the large-kernel family.

Papers: "Visual Attention Network" (arXiv 2202.09741) and "Large Separable Kernel Attention:
Rethinking the Large Kernel Attention Design in CNN" (arXiv 2309.01439). Official code:
Visual-Attention-Network/VAN-Classification at commit e19779b and VAN-Segmentation at 8285fc7,
StevenLauHKHK/Large-Separable-Kernel-Attention at bb2a8d2, all Apache-2.0. Written from the papers
and from what that code computes; submodules bear the names of mmpretrain's VAN.

The trip of a map, ``i`` from 0 on, in :meth:`VAN.forward_stage`: images or the map of the stage
before pass ``patch_embed{i + 1}`` (strided convolution, norm), the blocks of ``blocks{i + 1}``,
``norm{i + 1}`` (over the channels) and the plugins of ``after_stage{i + 1}``. In a block, which is
:class:`VANBlock`, both halves are residual::

    x + scale_1 * after_attention(attn(norm1(x)))      attn: SpatialAttention, around the gate
    x + scale_2 * after_ffn(mlp(norm2(x)))             mlp: ConvFFN

:meth:`StagedBackbone.forward` calls the stages and returns the maps of ``out_indices``.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from mmcv.cnn.bricks.drop import DropPath
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import nn

from mmlska.checkpoint.naming import STAGE_NORM_EPS, naming_of
from mmlska.checkpoint.recognition import Trait, describe_van, is_convertible, recognise_van
from mmlska.layers import ConvFFN
from mmlska.layers.build import build_activation, build_layer, build_norm, build_plugins
from mmlska.layers.input_check import check_first_conv
from mmlska.layers.recompute import recompute
from mmlska.layers.weight_init import init_convs
from mmlska.ops import add_scaled, in_fast_layout, is_watched
from mmlska.registry import MODELS

from .base import (
    ArchError,
    StagedBackbone,
    check_rates,
    drop_path_rates,
    resolve_arch,
)

WARM_START = 'mmlska.WarmStart'
WIDE = [64, 128, 320, 512]
ARCHS = {
    ('tiny', 't', 'b0'): dict(embed_dims=[32, 64, 160, 256], depths=[3, 3, 5, 2]),
    ('small', 's', 'b1'): dict(embed_dims=WIDE, depths=[2, 2, 4, 2]),
    ('base', 'b', 'b2'): dict(embed_dims=WIDE, depths=[3, 3, 12, 3]),
    ('large', 'l', 'b3'): dict(embed_dims=WIDE, depths=[3, 5, 27, 3]),
    ('b4',): dict(embed_dims=WIDE, depths=[3, 6, 40, 3]),
    ('b5',): dict(embed_dims=[96, 192, 480, 768], depths=[3, 3, 24, 3]),
    ('b6',): dict(embed_dims=[96, 192, 384, 768], depths=[6, 6, 90, 6]),
}
FFN_RATIOS = [8, 8, 4, 4]
BLOCK_POSITIONS = ('after_attention', 'after_ffn')
PLUGIN_POSITIONS = (*BLOCK_POSITIONS, 'after_stage')


class PatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution and a norm.

    Args:
        in_channels (int): Channels of the input map.
        embed_dims (int): Channels of the output map.
        patch_size (int): Odd kernel size; the stride is ``patch_size // 2 + 1``.
        norm_cfg (dict): Config of the norm.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, norm_cfg: dict) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            in_channels, embed_dims, patch_size, patch_size // 2 + 1, patch_size // 2
        )
        self.norm = build_norm(norm_cfg, embed_dims)
        init_convs(self.projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H / stride), ceil(W / stride))``."""
        check_first_conv(self, x, self.projection)
        return self.norm(self.projection(x))


class SpatialAttention(nn.Module):
    """``x + proj_2(gate(act(proj_1(x))))``, the attention branch of a VAN block.

    Args:
        in_channels (int): Channels of the input and output map.
        attention (dict): Config of the gate, an attention layer.
        act_cfg (dict): Config of the activation.
    """

    def __init__(self, in_channels: int, attention: dict, act_cfg: dict) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(in_channels, in_channels, 1)
        self.activation = build_activation(act_cfg)
        self.spatial_gating_unit = build_layer(attention, in_channels)
        self.proj_2 = nn.Conv2d(in_channels, in_channels, 1)
        init_convs(self.proj_1, self.proj_2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        return x + self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x))))


class VANBlock(nn.Module):
    """A block of VAN: attention and convolutional FFN, each normalised, scaled and residual.

    Args:
        in_channels (int): Channels of the input and output map.
        ffn_ratio (float): Hidden channels of the FFN, in multiples of ``in_channels``.
        attention (dict): Config of the attention layer.
        norm_cfg (dict): Config of the two norms.
        act_cfg (dict): Config of the activations.
        drop_rate (float): Dropout in the FFN. Defaults to 0.
        drop_path_rate (float): Stochastic depth of both branches. Defaults to 0.
        layer_scale_init_value (float): Start of the layer scales; 0 builds none. Defaults to 1e-2.
        plugins (dict[str, list[dict]], optional): Configs of the layers that act on the outputs of
            the branches, by position. Defaults to None.
        with_cp (bool): Recompute activations in the backward pass. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        ffn_ratio: float,
        attention: dict,
        norm_cfg: dict,
        act_cfg: dict,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-2,
        plugins: dict[str, list[dict]] | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        plugins = plugins or {}
        self.out_channels = in_channels
        self.with_cp = with_cp
        self.norm1 = build_norm(norm_cfg, in_channels)
        self.attn = SpatialAttention(in_channels, attention, act_cfg)
        self.after_attention = build_plugins(plugins.get('after_attention', []), in_channels)
        self.norm2 = build_norm(norm_cfg, in_channels)
        self.mlp = ConvFFN(in_channels, int(in_channels * ffn_ratio), act_cfg, drop_rate)
        self.after_ffn = build_plugins(plugins.get('after_ffn', []), in_channels)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.layer_scale_1 = self._layer_scale(layer_scale_init_value)
        self.layer_scale_2 = self._layer_scale(layer_scale_init_value)

    def _layer_scale(self, init_value: float) -> nn.Parameter | None:
        if init_value == 0:
            return None
        return nn.Parameter(init_value * torch.ones(self.out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.after_attention(self.attn(self.norm1(x)))
        x = self._add(x, branch, self.layer_scale_1)
        branch = self.after_ffn(self.mlp(self.norm2(x)))
        return self._add(x, branch, self.layer_scale_2)

    def _add(
        self, x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor | None
    ) -> torch.Tensor:
        """``x + drop_path(scale * branch)``."""
        if scale is None or self._must_see_the_branch():
            return x + self.drop_path(scale_channels(branch, scale))
        return add_scaled(x, branch, scale, self._draw(branch, scale))

    def _must_see_the_branch(self) -> bool:
        """Whether the module that drops paths is not a known one, or something waits for it."""
        return type(self.drop_path) not in (DropPath, nn.Identity) or is_watched(self.drop_path)

    def _draw(self, branch: torch.Tensor, scale: torch.Tensor) -> torch.Tensor | None:
        """What drop path multiplies each image with, ``(N, 1, 1, 1)``; None if it drops nothing.

        The module itself draws it, of the dtype that the scaled branch would have: the same random
        numbers as if it saw the branch.
        """
        if isinstance(self.drop_path, nn.Identity) or not self.drop_path.training:
            return None
        dtype = torch.result_type(branch, scale)
        return self.drop_path(branch.new_ones((branch.shape[0], 1, 1, 1), dtype=dtype))


def scale_channels(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Multiply a map ``(N, C, H, W)`` by one factor a channel; None leaves it as it is."""
    return x if scale is None else x * scale[:, None, None]


@MODELS.register_module()
class VAN(StagedBackbone):
    """Visual Attention Network with LSKA, LKA or any other attention layer.

    VAN (arXiv 2202.09741, section 3.3) as the LSKA paper takes it over (arXiv 2309.01439). Images
    ``(N, in_channels, H, W)`` of any size become a tuple of maps ``(N, C, H / s, W / s)``, rounded
    up, for the strides ``s`` of 4, 8, 16 and 32: one for each out index.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', 'large' (short 't', 's', 'b', 'l'; VAN's own
            'b0' to 'b3'), 'b4', 'b5', 'b6', or a dict with the lists ``embed_dims``, ``depths`` and
            ``ffn_ratios``, one entry a stage. Defaults to 'tiny'.
        attention (dict): Config of the attention layer of every block.
            Defaults to ``dict(type='LSKA', kernel_size=23)``.
        in_channels (int): Channels of the image. Defaults to 3.
        drop_rate (float): Dropout in the FFNs. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last block; it grows linearly from 0 at the
            first. Defaults to 0.
        out_indices (Sequence[int] | int): Stages whose maps are returned, in increasing order.
            Stages beyond the last one are not built. Defaults to ``(0, 1, 2, 3)``.
        frozen_stages (int): Stages up to this index neither train nor update statistics; -1 freezes
            none. Defaults to -1.
        norm_eval (bool): Keep BatchNorm layers in evaluation mode. Defaults to False.
        norm_cfg (dict): Config of the norms in blocks and patch embeddings.
            Defaults to ``dict(type='BN')``.
        act_cfg (dict): Config of the activations. Defaults to ``dict(type='GELU')``.
        stage_norm_cfg (dict): Config of the norm at the end of each stage. The official
            classification code has eps 1e-6, its detection and segmentation copies 1e-5.
            Defaults to ``dict(type='LN', eps=1e-6)``.
        layer_scale_init_value (float): Start of the layer scales; 0 builds none. Defaults to 1e-2.
        plugins (list[dict], optional): Attention layers to add, by the convention of mmdet's
            ResNet: each a dict with ``cfg`` (config of the layer), ``stages`` (a bool for each
            stage; default all) and ``position``: 'after_attention' or 'after_ffn' (output of that
            branch of each block, before layer scale and residual sum) or 'after_stage' (default;
            the map that leaves the stage). Defaults to None.
        with_cp (bool): Recompute the activations of the blocks in the backward pass to save memory.
            Defaults to False.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. None keeps the
            initialisation of the official classification code. ``convert=dict()`` in one of type
            'Pretrained' starts from weights of another LKA or LSKA, see
            :class:`mmlska.conversion.WarmStart`. Defaults to None.
        patch_sizes (Sequence[int]): Odd kernel size of each patch embedding; the stride is
            ``patch_size // 2 + 1``. Defaults to ``(7, 3, 3, 3)``.
        pretrained (str, optional): Checkpoint, short for an ``init_cfg`` of type 'Pretrained': base
            models of mmseg name it so. Defaults to None.

    Raises:
        ValueError: If ``arch`` is unknown or malformed, or if an index, rate or plugin is not
            possible. The message names what is allowed.

    Example:
        >>> import torch
        >>> from mmlska.models import VAN
        >>> model = VAN('tiny', attention=dict(type='LSKA', kernel_size=35))
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 160, 4, 6), (1, 256, 2, 3)]
    """

    arch_zoo = {
        name: dict(settings, ffn_ratios=FFN_RATIOS)
        for names, settings in ARCHS.items()
        for name in names
    }

    def __init__(
        self,
        arch: str | dict = 'tiny',
        attention: dict = dict(type='LSKA', kernel_size=23),
        in_channels: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | int = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='GELU'),
        stage_norm_cfg: dict = dict(type='LN', eps=1e-6),
        layer_scale_init_value: float = 1e-2,
        plugins: list[dict] | None = None,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        patch_sizes: Sequence[int] = (7, 3, 3, 3),
        pretrained: str | None = None,
    ) -> None:
        settings = resolve_arch(arch, self.arch_zoo)
        depths = settings['depths']
        _check_patch_sizes(patch_sizes, len(depths))
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        init_cfg = name_warm_start(init_cfg)
        super().__init__(len(depths), out_indices, frozen_stages, norm_eval, init_cfg, pretrained)
        self.arch_settings = settings
        self.embed_dims = settings['embed_dims']
        self.depths = depths
        self.ffn_ratios = settings['ffn_ratios']
        stage_plugins = sort_plugins(plugins, len(depths))

        rates = drop_path_rates(drop_path_rate, depths)
        for i in range(self.num_stages):
            dims = self.embed_dims[i]
            stage_in = in_channels if i == 0 else self.embed_dims[i - 1]
            blocks = [
                VANBlock(
                    dims,
                    self.ffn_ratios[i],
                    attention,
                    norm_cfg,
                    act_cfg,
                    drop_rate=drop_rate,
                    drop_path_rate=rate,
                    layer_scale_init_value=layer_scale_init_value,
                    plugins=stage_plugins[i],
                    with_cp=with_cp,
                )
                for rate in rates[i]
            ]
            patch_embed = PatchEmbed(stage_in, dims, patch_sizes[i], norm_cfg)
            self.add_module(f'patch_embed{i + 1}', patch_embed)
            self.add_module(f'blocks{i + 1}', nn.ModuleList(blocks))
            self.add_module(f'norm{i + 1}', build_norm(stage_norm_cfg, dims))
            after_stage = build_plugins(stage_plugins[i]['after_stage'], dims)
            self.add_module(f'after_stage{i + 1}', after_stage)
        self.freeze_stages()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each returned map."""
        return tuple(self.embed_dims[i] for i in self.out_indices)

    def stage(self, index: int) -> list[nn.Module]:
        """Patch embedding, blocks, norm and plugins of a stage, the first one being 0."""
        names = ('patch_embed', 'blocks', 'norm', 'after_stage')
        return [getattr(self, f'{name}{index + 1}') for name in names]

    def stage_blocks(self, index: int) -> list[nn.Module]:
        """The blocks of a stage."""
        return list(getattr(self, f'blocks{index + 1}'))

    def forward_stage(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Embed the patches, run the blocks, normalise, and run the plugins."""
        patch_embed, blocks, norm, after_stage = self.stage(index)
        x = in_fast_layout(patch_embed(x))
        for block in blocks:
            x = block(x)
        return after_stage(norm(x))

    def describe_weights(self, state_dict: Mapping) -> dict[str, Trait]:
        """Attention, kernel size and architecture that the weights are of."""
        return describe_van(state_dict, self.num_stages, self.arch_zoo)

    def may_be_left_over(self, key: str) -> bool:
        """Weights of a stage beyond the last out index."""
        stage = re.match(r'(?:patch_embed|blocks|norm|after_stage)(\d+)\.', key)
        return stage is not None and int(stage[1]) > self.num_stages

    def may_be_missing(self, key: str) -> bool:
        """Weights of plugins: no pretrained file can hold them."""
        return re.search(r'(?:^|\.)after_(?:attention|ffn|stage\d+)\.', key) is not None

    def more_remedies(self, given: Mapping, differing: Iterable[str]) -> list[str]:
        """A warm start, where nothing differs but what it can change."""
        options = [
            recognise_van(weights, self.num_stages) for weights in (given, self.state_dict())
        ]
        attentions = [own.get('attention') for own in options]
        remedies = {
            'attention': 'start from their nearest likeness with convert=dict() in init_cfg',
            'in_channels': "make a stem by convert=dict(in_channels='mean') in init_cfg, or by "
            "'sum', 'repeat' or 'zero'",
        }
        if not set(differing) <= set(remedies):
            return []
        if 'attention' in differing and not all(map(is_convertible, attentions)):
            return []
        return [remedies[option] for option in differing]

    def note_origin(self, keys: list[str]) -> None:
        """Warn where the codebase that named the weights computes with another epsilon."""
        naming = naming_of(keys)
        theirs, ours = STAGE_NORM_EPS.get(naming), getattr(self.norm1, 'eps', None)
        if theirs is not None and ours != theirs:
            print_log(
                f'these weights bear the names of {naming}, whose stage norms have eps {theirs}; '
                f'this model has {ours}. For its exact outputs set '
                f"stage_norm_cfg=dict(type='LN', eps={theirs})",
                'current',
                logging.WARNING,
            )


def name_warm_start(init_cfg: dict | list[dict] | None) -> dict | list[dict] | None:
    """The initialisation config with every conversion under the name of who makes it.

    An entry of type 'Pretrained' with ``convert`` becomes one of
    :class:`mmlska.conversion.WarmStart`, and stands last, as mmengine puts those it knows.
    """
    if init_cfg is None or isinstance(init_cfg, dict):
        return _name_warm_start(init_cfg or {}) or None
    named = [_name_warm_start(cfg) for cfg in init_cfg]
    return sorted(named, key=lambda cfg: cfg['type'] == WARM_START)


def _name_warm_start(cfg: dict) -> dict:
    if cfg.get('type') in ('Pretrained', PretrainedInit) and 'convert' in cfg:
        return {**cfg, 'type': WARM_START}
    return cfg


def sort_plugins(plugins: Sequence[dict] | None, num_stages: int) -> list[dict[str, list[dict]]]:
    """Distribute plugin configs over the stages.

    Args:
        plugins (Sequence[dict], optional): Entries with ``cfg``, ``stages`` and ``position``.
        num_stages (int): Number of stages of the architecture.

    Returns:
        list[dict[str, list[dict]]]: For each stage the configs of the layers at each position.

    Raises:
        ValueError: If a position is unknown, an entry has other keys, or ``stages`` does not hold
            one bool for each stage.
    """
    stages = [{position: [] for position in PLUGIN_POSITIONS} for _ in range(num_stages)]
    for plugin in plugins or []:
        if 'cfg' not in plugin or not set(plugin) <= {'cfg', 'stages', 'position'}:
            raise ValueError(f"a plugin has the keys 'cfg', 'stages', 'position', but got {plugin}")
        position = plugin.get('position', 'after_stage')
        if position not in PLUGIN_POSITIONS:
            raise ValueError(
                f'plugin position {position!r} is unknown: '
                f'allowed are {", ".join(PLUGIN_POSITIONS)}'
            )
        chosen = plugin.get('stages')
        chosen = (True,) * num_stages if chosen is None else chosen
        if len(chosen) != num_stages or not all(isinstance(flag, bool) for flag in chosen):
            raise ValueError(
                f'plugin stages {chosen} must hold {num_stages} bools, one for each stage'
            )
        for stage, flag in zip(stages, chosen, strict=True):
            if flag:
                stage[position].append(plugin['cfg'])
    return stages


def _check_patch_sizes(patch_sizes: Sequence[int], num_stages: int) -> None:
    if len(patch_sizes) < num_stages:
        raise ArchError(
            f'arch has {num_stages} stages, but patch_sizes={tuple(patch_sizes)} is for '
            f'{len(patch_sizes)}'
        )
    if any(size < 1 or size % 2 == 0 for size in patch_sizes):
        raise ValueError(f'patch_sizes must be odd and positive, but got {tuple(patch_sizes)}')
