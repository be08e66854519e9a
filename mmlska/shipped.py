"""The configs that come with the package, found without importing anything heavy."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path


def config_root() -> Path:
    """Folder of the configs, installed or in a checkout.

    Raises:
        FileNotFoundError: If neither place has one.
    """
    package = Path(__file__).resolve().parent
    installed = package / '.mim' / 'configs'
    for folder in (installed, package.parent / 'configs'):
        if folder.is_dir():
            return folder.resolve()
    raise FileNotFoundError(f'no shipped configs: {installed} is absent; install mmlska again')


def shipped_configs() -> dict[str, Path]:
    """Absolute paths of the configs by their bare names, bases left out."""
    root = config_root()
    paths = sorted(path for path in root.rglob('*.py') if '_base_' not in path.parts)
    return {path.stem: path for path in paths}


def match_configs(pattern: str) -> list[Path]:
    """Paths of the configs whose name, or path below the root, matches.

    Args:
        pattern: A glob, such as ``'mask-rcnn*tiny*'`` or ``'van/*'``, or any part of the path.

    Raises:
        ValueError: If none matches; names the nearest ones.
    """
    root = config_root()
    configs = shipped_configs()
    matches = []
    for path in configs.values():
        relative = path.relative_to(root).as_posix()
        if pattern in relative or any(
            fnmatch(name, pattern) for name in (relative, path.name, path.stem)
        ):
            matches.append(path)
    if not matches:
        raise ValueError(f'no shipped config matches {pattern!r}{nearest(pattern, configs, 3)}')
    return matches


def nearest(name: str, choices: Iterable[str], count: int = 1) -> str:
    """Words that point to the choices most like ``name``; empty if none is.

    >>> nearest('train_datalaoder', ['train_dataloader', 'val_dataloader'])
    '; did you mean train_dataloader?'
    """
    matches = difflib.get_close_matches(name, list(choices), n=count)
    return f'; did you mean {" or ".join(matches)}?' if matches else ''
