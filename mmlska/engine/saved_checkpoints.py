"""Checkpoint files that are whole or not there, and the newest whole one of a run."""

import errno
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

PARTIAL = '.partial'
LAST = 'last_checkpoint'


class SavedCheckpoint(NamedTuple):
    """A checkpoint file with its place in the training: epoch or iteration, and what follows it."""

    step: tuple[int, int]
    path: Path


class Choice(NamedTuple):
    """What a training can go on from, and what it cannot, as pairs of a path and its fault."""

    path: Path | None
    refused: list[tuple[Path, str]]


def fault(path: str | os.PathLike) -> str:
    """What keeps a saved checkpoint from being whole, empty if nothing.

    A file is read to its end and compared with the checksums that ``torch.save`` has written into
    it; nothing of it is unpickled. A folder, as sharded training saves it, must hold whole files.
    """
    path = Path(path)
    if os.path.isdir(path):
        parts = sorted(path.iterdir())
        faults = [f'has the part {part.name}, which {fault(part)}' for part in parts if fault(part)]
        return next(iter(faults), '' if parts else 'is an empty folder')
    # Of a name that no disk takes, methods of a path raise an error.
    if not os.path.isfile(path):
        return 'does not exist'
    size = path.stat().st_size
    if size == 0:
        return 'is empty'
    try:
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error):
        return f'is truncated or no checkpoint of a training ({size} bytes)'
    if damaged:
        return f'is damaged at {damaged}'
    return '' if any(name.endswith('data.pkl') for name in names) else 'is another kind of archive'


def partial_name(filename: str) -> str:
    """Name that a file bears in its folder until it is whole."""
    return f'.{filename}{PARTIAL}'


def move_into_place(partial: str | os.PathLike, final: str | os.PathLike) -> None:
    """Give a new file its name, once the disk holds all of it.

    Args:
        partial: The new file, in the folder of the final one.
        final: Its name. What bears it is replaced.

    Raises:
        OSError: If the disk did not keep what was written.
    """
    parts = Path(partial).iterdir() if os.path.isdir(partial) else [partial]
    for part in parts:
        flush(part)
    problem = fault(partial)
    if problem:
        raise OSError(errno.EIO, f'what was written {problem}', str(partial))
    if os.path.isdir(final):
        # Only a file can be replaced in one step.
        shutil.rmtree(final)
    os.replace(partial, final)
    # Windows opens no folder, and some network disks flush none: the file is whole all the same.
    with suppress(OSError):
        flush(os.path.dirname(final) or '.')


def flush(path: str | os.PathLike) -> None:
    """Wait until the disk has what was written to a file, or the entries of a folder."""
    # Windows flushes what is open for writing alone.
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: str | os.PathLike) -> None:
    """Remove a file or a folder if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def saved_checkpoints(folders: Iterable[str | os.PathLike], template: str) -> list[SavedCheckpoint]:
    """Checkpoints of a run, whole or not, the most trained first.

    Args:
        folders: Where to look.
        template: How the run names them, such as ``'epoch_{}.pth'``. The place of the braces is
            taken by a number, or by ``<epoch>_iter_<iteration>`` in the middle of an epoch.
    """
    number = r'(\d+)(?:_iter_(\d+))?'
    pattern = re.compile(number.join(map(re.escape, template.split('{}', 1))))
    paths = [path for folder in dict.fromkeys(map(Path, folders)) for path in _entries(folder)]
    matches = [(pattern.fullmatch(path.name), path) for path in paths]
    return sorted(
        (
            SavedCheckpoint((int(match[1]), int(match[2] or 0)), path)
            for match, path in matches
            if match
        ),
        reverse=True,
    )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def choose_checkpoint(folders: list[str], template: str) -> Choice:
    """Find the newest whole checkpoint of a run.

    ``last_checkpoint`` in the first folder names the newest, by a path that does not hold any more
    where the folder was moved: its name is looked for in the folders first. What is more trained
    than that and older is of an earlier run in the same folder, and the last choice.

    Args:
        folders: The work dir, and where else checkpoints are saved.
        template: How the run names them, see :func:`saved_checkpoints`.
    """
    refused = []
    for path in _in_order(folders, template):
        problem = fault(path)
        if not problem:
            return Choice(path, refused)
        refused.append((path, problem))
    return Choice(None, refused)


def _in_order(folders: list[str], template: str) -> list[Path]:
    saved = saved_checkpoints(folders, template)
    record = Path(folders[0], LAST)
    name = record.read_text(errors='replace', encoding='locale').strip() if record.is_file() else ''
    if not name:
        return [checkpoint.path for checkpoint in saved]
    last = _found(name, folders)
    step = next((checkpoint.step for checkpoint in saved if checkpoint.path == last), None)
    paths = [checkpoint.path for checkpoint in saved]
    if step is None:
        return [last, *paths]
    written = record.stat().st_mtime
    stale = [c.path for c in saved if c.step > step and c.path.stat().st_mtime < written]
    return [path for path in paths if path not in stale] + stale


def _found(name: str, folders: list[str]) -> Path:
    """The file that ``last_checkpoint`` names: beside it, else where it says."""
    for folder in folders:
        # Which reads the paths of all systems.
        beside = Path(folder, PureWindowsPath(name).name)
        if os.path.exists(beside):
            return beside
    return Path(name)
