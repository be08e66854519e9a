"""Remembering what was found in files that have not changed since."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path

from mmengine.logging import print_log

from .faults import Fault, has_errors
from .sources import CocoSource

# Part of the key: a check that finds more must not trust what an older one has found.
CHECKS = 3


def cache_folder() -> Path:
    """Where results are kept, ``mmlska`` in the user's folder for caches.

    A user of a container may have no home: then it is the folder for temporary files.
    """
    home = os.path.expanduser('~')
    usual = os.path.join(home if os.path.isabs(home) else tempfile.gettempdir(), '.cache')
    return Path(os.environ.get('XDG_CACHE_HOME') or usual) / 'mmlska'


def remembered(source: CocoSource, find: Callable[[CocoSource], list[Fault]]) -> list[Fault]:
    """Faults of a detection set, from the cache where its file has the same time and size.

    Only what has no error is kept: who mends a file wants it read again, whatever its time says.

    Args:
        source: The data set.
        find: What finds the faults.
    """
    state = state_of(source.path)
    if state is None:
        return find(source)
    settings = [CHECKS, os.path.abspath(source.path), state]
    settings += [astuple(source), [(name, state_of(name)) for name in source.truths]]
    key = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()
    path = cache_folder() / f'data-check-{key[:32]}.json'
    try:
        return [
            Fault(**{**kept, 'where': tuple(kept['where'])})
            for kept in json.loads(path.read_text(encoding='utf-8'))
        ]
    except (OSError, ValueError, TypeError, KeyError):
        faults = find(source)
    if not has_errors(faults):
        keep(path, faults)
    return faults


def state_of(path: str) -> tuple[int, int] | None:
    """Time and size of a file, None if it is not there."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def keep(path: Path, faults: list[Fault]) -> None:
    """Write faults so that no other process reads half of them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            'w', dir=path.parent, delete=False, encoding='utf-8'
        ) as file:
            json.dump([asdict(fault) for fault in faults], file)
        os.replace(file.name, path)
    except OSError as error:
        print_log(f'the data check cannot be remembered: {error}', logger='current')
