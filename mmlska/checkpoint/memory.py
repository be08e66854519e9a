"""What a file of ``torch.save`` asks memory for, looked at before it gets any."""

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import _weights_only_unpickler as torch_unpickler

from .files import CheckpointError

# ``torch.load`` lets a file call these, which make as many zeros as it says.
MAKERS_OF_ZEROS = {'__builtin__ bytearray', 'builtins bytearray'}
# Before zip archives a file was five pickles, and behind them the bytes of the tensors.
PICKLES_BEFORE_WEIGHTS = 3


def check_memory(path: Path) -> None:
    """Refuse a file that asks for more memory than it has bytes.

    Raises:
        CheckpointError: If the parts of an archive, or the tensors, are larger than the file, or if
            it makes bytes from a number.
    """
    if not zipfile.is_zipfile(path):
        with path.open('rb') as file:
            for _ in range(PICKLES_BEFORE_WEIGHTS + 1):
                _check_calls(path, file)
        _check_tensors_behind_pickles(path)
        return
    with zipfile.ZipFile(path) as archive:
        # torch.save stores without compression, so that no honest checkpoint unpacks to more.
        declared = sum(part.file_size for part in archive.infolist())
        if declared > path.stat().st_size:
            raise _too_large(path, f'its parts declare {declared}')
        for name in archive.namelist():
            if name.endswith('data.pkl'):
                with archive.open(name) as file:
                    _check_calls(path, file)


def _check_calls(path: Path, file: IO[bytes]) -> None:
    """Read one pickle without building anything, and refuse what makes bytes from a number."""
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == 'GLOBAL' and argument in MAKERS_OF_ZEROS:
            raise CheckpointError(
                f'checkpoint {str(path)!r} is refused: it holds a bytearray, which could ask for '
                'any size of memory'
            )


def _check_tensors_behind_pickles(path: Path) -> None:
    """Build the tensors of a file that is no archive without values, and compare sizes."""
    storages: dict[Any, tuple[torch.UntypedStorage, int]] = {}
    size = path.stat().st_size

    def storage_of(saved: tuple) -> torch.storage.TypedStorage:
        kind, key, _, count, _ = saved[1:]
        dtype = getattr(kind, 'dtype', torch.uint8)
        if key not in storages:
            wanted = count * dtype.itemsize
            if sum(known for _, known in storages.values()) + wanted > size:
                raise _too_large(path, f'the tensors up to {key!r} need more ({wanted} for it)')
            storages[key] = torch.UntypedStorage(wanted, device='meta'), wanted
        return torch.storage.TypedStorage(
            wrap_storage=storages[key][0], dtype=dtype, _internal=True
        )

    with path.open('rb') as file:
        for _ in range(PICKLES_BEFORE_WEIGHTS):
            torch_unpickler.load(file)
        unpickler = torch_unpickler.Unpickler(file)
        unpickler.persistent_load = storage_of
        try:
            unpickler.load()
        except CheckpointError:
            raise
        except RuntimeError:
            # Quantized tensors have none without values. What else fails fails again in torch.load.
            return
    # A tensor that is larger than its storage makes it grow.
    if any(storage.nbytes() > wanted for storage, wanted in storages.values()):
        raise _too_large(path, 'a tensor is larger than its values')


def _too_large(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f'checkpoint {str(path)!r} is refused: it has {path.stat().st_size} bytes, and {why}'
    )
