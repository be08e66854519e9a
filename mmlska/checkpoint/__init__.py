"""Weights of other codebases: reading files, translating names, loading whole or not at all.

Importing this package makes mmengine read checkpoint files through :func:`load_from_local` and
:func:`load_from_http`, so that ``init_cfg`` and ``load_from`` take every format listed there.
"""

from .naming import NAMINGS, rename_keys, to_mmlska, to_naming
from .reading import (
    CheckpointError,
    load_from_http,
    load_from_local,
    read_checkpoint,
    register_loaders,
    unwrap,
)
from .whole_loading import WholeLoading

__all__ = [
    'NAMINGS',
    'CheckpointError',
    'WholeLoading',
    'load_from_http',
    'load_from_local',
    'read_checkpoint',
    'register_loaders',
    'rename_keys',
    'to_mmlska',
    'to_naming',
    'unwrap',
]

register_loaders()
