"""Models made ready for use: norms fused into convolutions."""

from .fused_mark import is_fused
from .fusing import fuse, list_unfused

__all__ = ['fuse', 'is_fused', 'list_unfused']
