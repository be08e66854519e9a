from .call_context import is_watched
from .dispatch import (
    BACKENDS,
    depthwise_cascade,
    depthwise_gelu,
    may_fuse_gelu,
    use_backend,
)
from .kernel_decomposition import decompose_kernel
from .memory_layout import in_fast_layout
from .residual import add_scaled
from .row_bands import in_bands

__all__ = [
    'BACKENDS',
    'add_scaled',
    'decompose_kernel',
    'depthwise_cascade',
    'depthwise_gelu',
    'in_bands',
    'in_fast_layout',
    'is_watched',
    'may_fuse_gelu',
    'use_backend',
]
