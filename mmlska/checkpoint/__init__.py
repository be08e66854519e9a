"""Weights of other codebases: reading files, translating names, loading whole or not at all.

``mmlska.models`` makes mmengine read checkpoint files through :func:`load_from_local` and
:func:`load_from_http`, so that ``init_cfg`` and ``load_from`` take every format listed there.
"""

from .files import CheckpointError
from .naming import NAMINGS, to_mmlska, to_naming
from .reading import (
    load_from_http,
    load_from_local,
    read_checkpoint,
    register_loaders,
    unwrap,
)
from .strict_loading import WholeLoading

__all__ = [
    'NAMINGS',
    'CheckpointError',
    'WholeLoading',
    'load_from_http',
    'load_from_local',
    'read_checkpoint',
    'register_loaders',
    'to_mmlska',
    'to_naming',
    'unwrap',
]
