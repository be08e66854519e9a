"""Folding for inference: the same outputs with fewer operations, exactly.

In evaluation mode a BatchNorm is one factor and one shift a channel. Both go into the convolution
beside it, and so do layer scales, wherever a convolution is pointwise or follows no padding.
"""

import copy
import logging

import torch
from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmlska.models.backbones.van import PatchEmbed, VANBlock, scale_channels
from mmlska.models.layers.large_kernel_attention import _DepthwiseGate


class FusedVANBlock(nn.Module):
    """A :class:`VANBlock` for inference, without norms and, where no plugin stands, layer scales.

    With norm ``a x + c`` and layer scale ``l`` the attention half of a block is
    ``x + l (proj_2(z) + a x + c)``: the shortcut inside starts from the *normalised* map. That is
    ``proj_2'(z) + (1 + l a) x`` with ``l`` and ``l c`` in the weights and the bias of ``proj_2'``.

    Args:
        block (VANBlock): A block in evaluation mode whose norms are BatchNorms.
    """

    def __init__(self, block: VANBlock) -> None:
        super().__init__()
        self.out_channels = block.out_channels
        factor, shift = affine_of(block.norm1)
        self.proj_1 = fold_before(factor, shift, block.attn.proj_1)
        self.activation = block.attn.activation
        self.spatial_gating_unit = block.attn.spatial_gating_unit
        self.proj_2 = block.attn.proj_2
        self.after_attention = block.after_attention
        fold_before(*affine_of(block.norm2), block.mlp.fc1)
        self.mlp = block.mlp
        self.after_ffn = block.after_ffn
        self.layer_scale_1, self.layer_scale_2 = block.layer_scale_1, block.layer_scale_2
        add_to_bias(self.proj_2, shift)
        if not len(self.after_attention):
            # No plugin between the branch and its scale: the residual sum is folded too.
            scale_output(self.proj_2, self.layer_scale_1)
            factor = 1 + scale_channels(factor[:, None, None], self.layer_scale_1).flatten()
            self.layer_scale_1 = None
        if not len(self.after_ffn):
            scale_output(self.mlp.fc2, self.layer_scale_2)
            self.layer_scale_2 = None
        self.register_buffer('skip', factor[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        gated = self.spatial_gating_unit(self.activation(self.proj_1(x)))
        y = torch.addcmul(self.proj_2(gated), x, self.skip)
        if len(self.after_attention):
            y = x + scale_channels(self.after_attention(y), self.layer_scale_1)
        branch = self.after_ffn(self.mlp(y))
        return y + scale_channels(branch, self.layer_scale_2)


def affine_of(norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and shift ``(C,)`` that a BatchNorm applies in evaluation mode."""
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight
    shift = -norm.running_mean * factor
    return factor, shift + norm.bias if norm.affine else shift


@torch.no_grad()
def fold_before(factor: torch.Tensor, shift: torch.Tensor, conv: nn.Conv2d) -> nn.Conv2d:
    """Fold ``factor * x + shift`` into the pointwise convolution that follows it, in place."""
    add_to_bias(conv, conv.weight[:, :, 0, 0] @ shift)
    conv.weight *= factor[None, :, None, None]
    return conv


@torch.no_grad()
def scale_output(conv: nn.Conv2d, scale: torch.Tensor | None) -> None:
    """Fold a factor ``(C,)`` on the output of a convolution into it, in place."""
    if scale is not None:
        conv.weight *= scale[:, None, None, None]
        conv.bias *= scale


@torch.no_grad()
def add_to_bias(conv: nn.Conv2d, shift: torch.Tensor) -> None:
    """Fold a shift ``(C,)`` of the output of a convolution into it, in place."""
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]))
    conv.bias += shift


def fuse_van_block(block: VANBlock) -> nn.Module | None:
    """The folded block, None if its norms are no BatchNorms."""
    norms = (block.norm1, block.norm2)
    return FusedVANBlock(block) if all(map(is_foldable, norms)) else None


def fuse_patch_embed(embed: PatchEmbed) -> nn.Module | None:
    """The patch embedding as one convolution, None if its norm is no BatchNorm."""
    if not is_foldable(embed.norm):
        return None
    embed.projection, embed.norm = fuse_conv_bn_eval(embed.projection, embed.norm), nn.Identity()
    return embed


def fuse_gate(gate: _DepthwiseGate) -> nn.Module:
    """The gate with the bias of its last depth-wise convolution in the pointwise one."""
    *_, last, conv1 = gate.children()
    add_to_bias(conv1, conv1.weight[:, :, 0, 0] @ last.bias)
    last.bias = None
    return gate


def fuse_conv_module(module: ConvModule) -> nn.Module | None:
    """Mmcv's convolution with its BatchNorm folded, None if there is none to fold."""
    plain_order = module.order == ('conv', 'norm', 'act')
    if not (plain_order and isinstance(module.conv, nn.Conv2d) and is_foldable(module.norm)):
        return None
    module.conv = fuse_conv_bn_eval(module.conv, module.norm)
    setattr(module, module.norm_name, nn.Identity())
    return module


def is_foldable(norm: nn.Module) -> bool:
    """Whether a norm is a fixed factor and shift in evaluation mode."""
    return isinstance(norm, _BatchNorm) and norm.track_running_stats


# What is folded, inner modules first.
RULES = {
    _DepthwiseGate: fuse_gate,
    PatchEmbed: fuse_patch_embed,
    VANBlock: fuse_van_block,
    ConvModule: fuse_conv_module,
}


def fuse(model: nn.Module) -> nn.Module:
    """Fold norms, layer scales and biases of a model for inference.

    Knows VAN with every attention and plugin, alone or inside a detector or segmentor, and mmcv's
    ``ConvModule`` in necks and heads. Everything else stays as it is, and the BatchNorms in it are
    named in a log line.

    Args:
        model (nn.Module): Model in evaluation mode. It is left as it was.

    Returns:
        nn.Module: A folded copy with the same outputs. It cannot be trained: its parameters take no
        gradients.

    Raises:
        ValueError: If the model is in training mode, or folded already.
    """
    if any(isinstance(module, FusedVANBlock) for module in model.modules()):
        raise ValueError('the model is folded already: fuse() it once, from the trained model')
    if model.training:
        raise ValueError('fuse() folds running statistics: call model.eval() first')
    fused = copy.deepcopy(model)
    for kind, rule in RULES.items():
        _apply(fused, kind, rule)
    left = [name for name, module in fused.named_modules() if isinstance(module, _BatchNorm)]
    if left:
        more = f' and {len(left) - 4} more' if len(left) > 4 else ''
        print_log(f'not folded: {", ".join(left[:4])}{more}', 'current', logging.INFO)
    return fused.requires_grad_(False)


def _apply(model: nn.Module, kind: type, rule) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, rule(child) or child)
