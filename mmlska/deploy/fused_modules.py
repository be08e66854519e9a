"""Blocks and layers that compute less than those that they are made from, for the same outputs."""

import copy

import torch
from torch import nn

from mmlska.layers import ContextAggregation, MixedAffinity
from mmlska.layers.context_aggregation import weighted_mean
from mmlska.layers.mixed_affinity import attend
from mmlska.models.backbones.container import ContainerBlock
from mmlska.models.backbones.van import VANBlock

from .affine import (
    Affine,
    add_identity,
    add_shift,
    affine_of,
    compose,
    fuse_after,
    fuse_before,
    hand_on_bias,
    scale,
    stack,
)


class FusedVANBlock(nn.Module):
    """A :class:`VANBlock` without norms and, where no plugin stands, without layer scales.

    With norm ``a x + c`` and layer scale ``l`` the attention half of a block is
    ``x + l (proj_2(z) + a x + c)``: the shortcut inside starts from the *normalised* map. That is
    ``proj_2'(z) + (1 + l a) x`` with ``l`` and ``l c`` in the weights and the bias of ``proj_2'``.

    Args:
        block (VANBlock): A block in evaluation mode whose norms are BatchNorms.
    """

    def __init__(self, block: VANBlock) -> None:
        super().__init__()
        self.out_channels = block.out_channels
        norm1, norm2 = affine_of(block.norm1), affine_of(block.norm2)
        self.proj_1 = fuse_before(norm1, block.attn.proj_1)
        self.activation = block.attn.activation
        self.spatial_gating_unit = block.attn.spatial_gating_unit
        self.proj_2 = add_shift(block.attn.proj_2, norm1.shift)
        self.after_attention = block.after_attention
        self.mlp = copy.deepcopy(block.mlp)
        self.mlp.fc1 = fuse_before(norm2, self.mlp.fc1)
        self.after_ffn = block.after_ffn
        self.layer_scale_1, self.layer_scale_2 = block.layer_scale_1, block.layer_scale_2
        skip = norm1.factor
        if not len(self.after_attention):
            # No plugin between the branch and its scale: the residual sum is fused too.
            skip = 1 + (skip if self.layer_scale_1 is None else skip * self.layer_scale_1.double())
            if self.layer_scale_1 is not None:
                self.proj_2 = fuse_after(self.proj_2, scale(self.layer_scale_1))
                self.layer_scale_1 = None
        if not len(self.after_ffn) and self.layer_scale_2 is not None:
            self.mlp.fc2 = fuse_after(self.mlp.fc2, scale(self.layer_scale_2))
            self.layer_scale_2 = None
        self.register_buffer('skip', skip.to(self.proj_2.weight))
        self.register_buffer('last_skip', None)

    @staticmethod
    def remade(block: VANBlock) -> list[nn.Module]:
        """The convolutions that the fused block has others for."""
        return [block.attn.proj_1, block.attn.proj_2, block.mlp.fc1, block.mlp.fc2]

    def end_with(self, affine: Affine) -> bool:
        """Take in the norm that follows the block; False if a plugin stands in between."""
        if len(self.after_ffn):
            return False
        self.mlp.fc2 = fuse_after(self.mlp.fc2, affine)
        self.last_skip = affine.factor.to(self.mlp.fc2.weight)
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        gated = self.spatial_gating_unit(self.activation(self.proj_1(x)))
        y = add_scaled(self.proj_2(gated), x, self.skip)
        if len(self.after_attention):
            y = add_scaled(x, self.after_attention(y), self.layer_scale_1)
        branch = self.after_ffn(self.mlp(y))
        if self.layer_scale_2 is not None:
            return add_scaled(y, branch, self.layer_scale_2)
        return add_scaled(branch, y, self.last_skip)


class FusedContainerBlock(nn.Module):
    """A :class:`ContainerBlock` without norms, and with one sum less.

    The position encoding ``x + conv(x)`` is one convolution. The mixing of both affinities is one
    sum, see :class:`FusedMix`.

    Args:
        block (ContainerBlock): A block in evaluation mode whose norms are BatchNorms.
    """

    def __init__(self, block: ContainerBlock) -> None:
        super().__init__()
        self.pos_embed = add_identity(block.pos_embed)
        self.conv1 = fuse_before(affine_of(block.norm1), block.conv1)
        if block.num_heads:
            share = block.sa_weight.double().sigmoid()
            static = fuse_after(block.conv, scale((1 - share).expand(block.conv.out_channels)))
            static, self.conv2 = hand_on_bias(static, block.conv2)
            self.mix = FusedMix(static, block.num_heads, share)
        else:
            self.mix, self.conv2 = hand_on_bias(block.attn, block.conv2)
        self.mlp = copy.deepcopy(block.mlp)
        self.mlp.fc1 = fuse_before(affine_of(block.norm2), self.mlp.fc1)
        self.register_buffer('last_skip', None)

    @staticmethod
    def remade(block: ContainerBlock) -> list[nn.Module]:
        """The convolutions that the fused block has others for."""
        static = block.conv if block.num_heads else block.attn
        return [block.pos_embed, block.conv1, static, block.conv2, block.mlp.fc1, block.mlp.fc2]

    def end_with(self, affine: Affine) -> bool:
        """Take in the norm that follows the block."""
        self.mlp.fc2 = fuse_after(self.mlp.fc2, affine)
        self.last_skip = affine.factor.to(self.mlp.fc2.weight)
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        x = self.pos_embed(x)
        x = x + self.conv2(self.mix(self.conv1(x)))
        return add_scaled(self.mlp(x), x, self.last_skip)


class FusedMix(nn.Module):
    """Static and dynamic affinity mixed in one sum: the weight of the static one is in its kernel.

    Args:
        static (nn.Conv2d): Depth-wise convolution, times the weight of the static affinity.
        num_heads (int): Heads of the dynamic affinity.
        alpha (Tensor): Weight of the dynamic affinity, of shape ``(1,)``.
    """

    def __init__(self, static: nn.Conv2d, num_heads: int, alpha: torch.Tensor) -> None:
        super().__init__()
        self.static = static
        self.num_heads = num_heads
        self.register_buffer('alpha', alpha.detach().to(static.weight))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        """Map queries, keys and values ``(N, 3 C, H, W)`` to ``(N, C, H, W)``."""
        value = qkv.chunk(3, dim=1)[2]
        return add_scaled(self.static(value), attend(qkv, self.num_heads), self.alpha)


class FusedMixedAffinity(nn.Module):
    """A :class:`MixedAffinity` whose mixing is one sum, see :class:`FusedMix`.

    Args:
        layer (MixedAffinity): The layer.
    """

    def __init__(self, layer: MixedAffinity) -> None:
        super().__init__()
        static = fuse_after(layer.conv, scale(layer.beta.expand(layer.conv.out_channels)))
        static, self.conv2 = hand_on_bias(static, layer.conv2)
        self.conv1 = layer.conv1
        self.mix = FusedMix(static, layer.num_heads, layer.alpha)

    @staticmethod
    def remade(layer: MixedAffinity) -> list[nn.Module]:
        """The convolutions that the fused layer has others for."""
        return [layer.conv1, layer.conv, layer.conv2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        return x + self.conv2(self.mix(self.conv1(x)))


class FusedContextAggregation(nn.Module):
    """A :class:`ContextAggregation` that reads its map once for both of its gates.

    ``v`` and ``m``, which act on a single vector, become one convolution where that is not larger.

    Args:
        layer (ContextAggregation): The layer.
    """

    def __init__(self, layer: ContextAggregation) -> None:
        super().__init__()
        self.gates = stack(layer.a, layer.k)
        is_larger = 2 * layer.v.out_channels < layer.v.in_channels
        self.context = nn.Sequential(layer.v, layer.m) if is_larger else compose(layer.v, layer.m)

    @staticmethod
    def remade(layer: ContextAggregation) -> list[nn.Module]:
        """The convolutions that the fused layer has others for."""
        return [layer.a, layer.k, layer.v, layer.m]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        gate, logits = self.gates(x).split(1, dim=1)
        mean = weighted_mean(x, logits)
        return torch.addcmul(x, gate.sigmoid(), self.context(mean))


def add_scaled(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """``x + factor * other`` in one pass, with one factor a channel or for all; None is 1."""
    return x + other if factor is None else torch.addcmul(x, other, factor[:, None, None])
