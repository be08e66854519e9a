"""Attention layers and other mechanisms, one a file. They need PyTorch alone."""

from mmlska.ops import decompose_kernel

from .attention_sequence import AttentionSequence
from .context_aggregation import ContextAggregation
from .conv_ffn import ConvFFN
from .dfc_attention import DFCAttention
from .eca import ECA, adaptive_kernel_size
from .ghost import GhostBottleneck, GhostModule, SqueezeExcite
from .identity_start import IdentityStart
from .large_kernel_attention import LKA, LSKA, LKATrivial, LSKATrivial
from .layer_norm import LayerNorm2d
from .mixed_affinity import MixedAffinity

__all__ = [
    'ECA',
    'LKA',
    'LSKA',
    'AttentionSequence',
    'ContextAggregation',
    'ConvFFN',
    'DFCAttention',
    'GhostBottleneck',
    'GhostModule',
    'IdentityStart',
    'LKATrivial',
    'LSKATrivial',
    'LayerNorm2d',
    'MixedAffinity',
    'SqueezeExcite',
    'adaptive_kernel_size',
    'decompose_kernel',
]
