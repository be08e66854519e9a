from .bands import in_bands
from .dispatch import (
    BACKENDS,
    depthwise_cascade,
    depthwise_gelu,
    may_fuse_gelu,
    use_backend,
)
from .layout import in_fast_layout
from .residual import add_scaled

__all__ = [
    'BACKENDS',
    'add_scaled',
    'depthwise_cascade',
    'depthwise_gelu',
    'in_bands',
    'in_fast_layout',
    'may_fuse_gelu',
    'use_backend',
]
