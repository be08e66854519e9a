"""What stands under the path of a checkpoint, looked at before a byte of it is believed."""

import os
import re
import zipfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

PUBLISHED = (
    'LSKA weights are published at '
    'https://github.com/StevenLauHKHK/Large-Separable-Kernel-Attention, '
    'LKA weights at https://github.com/Visual-Attention-Network/VAN-Classification, '
    'GhostNetV2 weights at '
    'https://github.com/huawei-noah/Efficient-AI-Backbones/releases/tag/GhostNetV2, '
    'CONTAINER-Light weights at https://github.com/allenai/container'
)
# Names that published weights bear, and names that a run gives to its own files.
PUBLISHED_NAME = re.compile(r'van|ls?ka|ghost|container', re.IGNORECASE)
OWN_NAME = re.compile(r'(epoch|iter|best|latest|last)_', re.IGNORECASE)
# Names of the files among which other libraries divide the weights of one model.
PART_NAME = re.compile(r'-(\d{5})-of-(\d{5})$')
LONGEST_HEADER = 100_000_000
# How files begin that are taken for checkpoints, and what to do about them.
OTHER_KINDS = {
    b'version https://git-lfs': 'the pointer of Git LFS, not the file: fetch it by `git lfs pull`',
    b'\x1f\x8b': 'compressed: unpack it by gunzip first',
    b'\x89HDF': 'a file of HDF5 (Keras), not of PyTorch: ask for weights of PyTorch',
    b'<': 'a page of the web, not the file behind it: fetch the file itself',
    b'{': 'a text of JSON: name the file of weights beside it, and where an index tells of several '
    'files, save the weights of all as one',
}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or whose weights do not fit the model."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint that is not there."""


def find_file(path: str | os.PathLike) -> Path:
    """The regular file that a path names, ``~`` and ``file:`` resolved.

    Raises:
        MissingCheckpointError: If there is none. For names as published weights bear them the
            message says where those are.
        CheckpointError: If something else than a file stands there. The message says what.
    """
    name = os.fspath(path)
    if not name:
        raise CheckpointError('the path of the checkpoint is empty')
    if name.startswith('file:'):
        name = url2pathname(urlsplit(name).path)
    try:
        found = Path(name).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f'checkpoint {name!r}: there is no such home folder') from error
    if found.is_file():
        _refuse_part(found)
        return found
    if found.is_dir():
        raise CheckpointError(f'checkpoint {name!r} is a folder: name a file in it')
    if found.is_symlink():
        raise CheckpointError(f'checkpoint {name!r} is a link that leads to no file')
    if found.exists():
        raise CheckpointError(f'checkpoint {name!r} is no regular file')
    where = f'. {PUBLISHED}.' if _is_published(found) else ''
    raise MissingCheckpointError(f'checkpoint {name!r} does not exist{where}')


def check_target(target: str | os.PathLike, suffixes: tuple[str, ...], overwrite: bool) -> Path:
    """Refuse a file that cannot be written, before any work is done.

    Args:
        target (str | PathLike): Where it goes.
        suffixes (tuple[str, ...]): What its name may end in.
        overwrite (bool): Whether one may be there.

    Returns:
        Path: The file, ``~`` resolved.

    Raises:
        ValueError: If its name ends otherwise.
        OSError: If its folder does not exist or cannot be written into, or the file exists.
    """
    path = Path(target).expanduser()
    if not path.name.endswith(suffixes):
        one = 'one of ' if len(suffixes) > 1 else ''
        raise ValueError(f'{str(path)!r} must end in {one}{", ".join(suffixes)}')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder of {str(path)!r} does not exist')
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f'the folder of {str(path)!r} cannot be written into')
    if path.exists() and (path.is_dir() or not overwrite):
        raise FileExistsError(f'{str(path)!r} exists; use --force to write over it')
    return path


def _refuse_part(path: Path) -> None:
    part = PART_NAME.search(path.stem)
    if part and int(part[2]) > 1:
        raise CheckpointError(
            f'checkpoint {str(path)!r} is by its name part {int(part[1])} of {int(part[2])}: read '
            'all parts into one dict of weights, and save that'
        )


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the size of a header, and the header."""
    with path.open('rb') as file:
        size, brace = int.from_bytes(file.read(8), 'little'), file.read(1)
    return brace == b'{' and size <= min(LONGEST_HEADER, path.stat().st_size - 8)


def check_kind(path: Path) -> None:
    """Refuse a file that is known to be of another kind.

    Raises:
        CheckpointError: If it is. The message says what it is, and what to do about it.
    """
    if kind := _other_kind(path):
        raise CheckpointError(
            f'checkpoint {str(path)!r} cannot be read: it is no checkpoint but {kind}'
        )


def _other_kind(path: Path) -> str:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            return 'a program of TorchScript: save the state_dict() of what torch.jit.load returns'
        if names and all(name.endswith('.npy') for name in names):
            return 'an archive of NumPy arrays: save them as a dict of tensors with torch.save'
        return ''
    with path.open('rb') as file:
        start = file.read(32).lstrip()
    return next((kind for mark, kind in OTHER_KINDS.items() if start.startswith(mark)), '')


def where_else(path: Path) -> str:
    """What to do about a file that cannot be read."""
    if _is_published(path):
        return f'Fetch it again. {PUBLISHED}.'
    return 'Take another copy of it, or an earlier checkpoint of the run.'


def _is_published(path: Path) -> bool:
    return bool(PUBLISHED_NAME.search(path.name)) and not OWN_NAME.match(path.name)
