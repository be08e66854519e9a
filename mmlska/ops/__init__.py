"""What a map goes through: operations in several forms, and the choice among them.

Imports torch and the standard library alone. Forms of an operation stand in a folder of its own.
"""

from .call_context import (
    is_watched,
    why_no_pointwise_conv,
    why_no_same_conv,
    why_observed,
    why_watched,
)
from .dispatch import (
    BACKENDS,
    Choice,
    depthwise_cascade,
    depthwise_gelu,
    may_fuse_gelu,
    record_choices,
    use_backend,
)
from .kernel_decomposition import decompose_kernel
from .large_kernel_attention import large_kernel_attention
from .memory_layout import in_fast_layout
from .onednn_defect import in_right_layout
from .residual.operation import add_scaled
from .row_bands import in_bands

__all__ = [
    'BACKENDS',
    'Choice',
    'add_scaled',
    'decompose_kernel',
    'depthwise_cascade',
    'depthwise_gelu',
    'in_bands',
    'in_fast_layout',
    'in_right_layout',
    'is_watched',
    'large_kernel_attention',
    'may_fuse_gelu',
    'record_choices',
    'use_backend',
    'why_no_pointwise_conv',
    'why_no_same_conv',
    'why_observed',
    'why_watched',
]
