from .fusing import fuse, list_unfolded

__all__ = ['fuse', 'list_unfolded']
