"""Attention layers and other mechanisms, one a file. They need PyTorch alone."""

from mmlska.ops import decompose_kernel

from .attention_sequence import AttentionSequence
from .context_aggregation import ContextAggregation
from .conv_ffn import ConvFFN
from .dfc_attention import DFCAttention
from .eca import ECA, adaptive_kernel_size
from .large_kernel_attention import LKA, LSKA, LKATrivial, LSKATrivial
from .mixed_affinity import MixedAffinity

__all__ = [
    'ECA',
    'LKA',
    'LSKA',
    'AttentionSequence',
    'ContextAggregation',
    'ConvFFN',
    'DFCAttention',
    'LKATrivial',
    'LSKATrivial',
    'MixedAffinity',
    'adaptive_kernel_size',
    'decompose_kernel',
]
