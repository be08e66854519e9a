"""What a checkpoint may hold beside its weights: plain data, by list.

``torch.load(weights_only=True)`` builds objects of listed classes only. To torch's own list come
what mmengine's runner, schedulers and logs write, and what training scripts put beside the weights.
Every entry is a class that holds data, or a function or class below that stands in for one that
takes too much on trust. A ``defaultdict`` arrives as a dict, a ``deque`` as a list.
"""

import argparse
import datetime
import math
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler

# A value of these kinds is its bytes. An array of objects, or of structures that may hold some, is
# made of addresses, which NumPy would follow wherever a file says.
NUMPY_KINDS = 'biufcSU'
LARGEST_RANGE = 1_000_000
# What a process of sharded training (FSDP) saves its part in: tensors, and where they belong.
SHARDED_TYPES: list[type] = []
# What classes look up when they are read.
ATTRIBUTES: dict[type, tuple[str, ...]] = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}
if torch.distributed.is_available():
    from torch.distributed import remote_device
    from torch.distributed._shard import sharded_tensor
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import metadata
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec, EnumerableShardingSpec

    SHARDED_TYPES += [
        remote_device._remote_device,
        sharded_tensor.Shard,
        sharded_tensor.ShardedTensor,
        sharded_tensor.ShardedTensor.ProcessGroupState,
        metadata.MEM_FORMAT_ENCODING,
        metadata.ShardedTensorMetadata,
        metadata.TensorProperties,
        ShardMetadata,
        ChunkShardingSpec,
        EnumerableShardingSpec,
    ]
    ATTRIBUTES[sharded_tensor.ShardedTensor] = ('ProcessGroupState',)


class _ArrayType:
    """Stands in for ``numpy.ndarray`` where a file only names it."""


class _Dtype:
    """Stands in for ``numpy.dtype``, which takes sizes and flags from the file."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        try:
            self.value = np.dtype(name if isinstance(name, str) else None)
        except TypeError as error:
            raise pickle.UnpicklingError(f'{name!r} is no NumPy type') from error
        if self.value.kind not in NUMPY_KINDS:
            raise pickle.UnpicklingError(f'the NumPy type {name!r} is not allowed')

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose bytes are counted before they are taken."""

    def __new__(cls) -> '_Array':
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, data = state
        data = _as_bytes(data, dtype, shape)
        super().__setstate__((version, shape, dtype.value, bool(is_fortran), data))

    def __reduce__(self) -> tuple:
        # Written again, it is an array like any other.
        return np.array(self, subok=False).__reduce__()


def _new_array(kind: type, shape: tuple, code: Any) -> _Array:
    """Stands in for NumPy's function, which asks for the memory of any shape."""
    if kind is not _ArrayType or shape != (0,):
        raise pickle.UnpicklingError('an array that begins with a shape is not allowed')
    return _Array()


def _new_scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
    """Stands in for NumPy's function, which believes the size that a file states."""
    return np.frombuffer(_as_bytes(data, dtype, ()), dtype.value, 1)[0]


def _as_bytes(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...]) -> bytes:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, str)):
        raise pickle.UnpicklingError('a NumPy value needs a type and bytes')
    data = data.encode('latin1') if isinstance(data, str) else data
    sides = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not sides or math.prod(shape) * dtype.value.itemsize != len(data):
        raise pickle.UnpicklingError(
            f'a NumPy value of shape {shape!r} and type {dtype.value} has {len(data)} bytes'
        )
    return data


def _attribute(owner: type, name: str) -> Callable:
    """What mmengine's checkpoints need of ``getattr``, and no more."""
    if owner not in ATTRIBUTES or name not in ATTRIBUTES[owner]:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _new_dict(factory: Any = None, *items: Any) -> dict:
    return dict(*items)


def _new_list(items: Any = (), maxlen: int | None = None) -> list:
    return list(items)


def _new_range(*limits: int) -> range:
    """Stands in for ``range``, of which a list, or a set, takes as much memory as a file says."""
    if any(abs(limit) > LARGEST_RANGE for limit in limits):
        raise pickle.UnpicklingError(f'a range of {limits!r} is not allowed')
    return range(*limits)


def _new_bytes(*data: Any) -> bytes:
    """Stands in for ``bytes``, which makes as many zeros as a file says."""
    if data:
        raise pickle.UnpicklingError('bytes made of something else are not allowed')
    return b''


def plain_types() -> list:
    """Classes and functions for :class:`torch.serialization.safe_globals`."""
    numpy_functions = [
        (function, f'numpy.{core}.multiarray.{name}')
        for function, name in ((_new_array, '_reconstruct'), (_new_scalar, 'scalar'))
        for core in ('core', '_core')
    ]
    paths = [
        (kind, f'{module}.{name}')
        for kind, names in (
            (pathlib.PurePosixPath, ('PosixPath', 'PurePosixPath')),
            (pathlib.PureWindowsPath, ('WindowsPath', 'PureWindowsPath')),
        )
        for name in names
        for module in ('pathlib', 'pathlib._local')
    ]
    # As factories of a defaultdict they are only named.
    factories = [int, float, list, dict, str, tuple]
    dates = [datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone]
    return [
        argparse.Namespace,
        ConfigDict,
        HistoryBuffer,
        OneCycleParamScheduler,
        frozenset,
        slice,
        *factories,
        *dates,
        *paths,
        *numpy_functions,
        (_ArrayType, 'numpy.ndarray'),
        (_Dtype, 'numpy.dtype'),
        _Array,
        (_new_dict, 'collections.defaultdict'),
        (_new_list, 'collections.deque'),
        (_new_range, 'builtins.range'),
        (_new_bytes, 'builtins.bytes'),
        (_attribute, 'builtins.getattr'),
        *SHARDED_TYPES,
    ]
