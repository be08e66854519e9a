"""Checkpoints that are not on this machine: every scheme of mmengine becomes a local file."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import urlopen

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import checkpoint as zoo

from .files import CheckpointError, find_file

HEX_DIGITS = 12


def download(url: str) -> Path:
    """Fetch an ``http://`` or ``https://`` URL into the hub's cache, once on each machine.

    The name in the cache holds a hash of the URL, so that two files of one name are two files. A
    download takes that name only when it is complete.

    Raises:
        CheckpointError: If the download fails or ends early.
    """
    return _once_a_machine(url, _fetch_http)


def cached_path(url: str) -> Path:
    """Where a URL's file lies in the hub's cache."""
    name = PurePosixPath(urlsplit(url).path)
    digest = hashlib.sha256(url.encode()).hexdigest()[:HEX_DIGITS]
    return Path(torch.hub.get_dir()) / 'checkpoints' / f'{name.stem}-{digest}{name.suffix}'


def _once_a_machine(url: str, fetch: Callable[[str, Path], None]) -> Path:
    """Fetch in the first process of each machine, while the others wait."""
    cached = cached_path(url)
    is_first = int(os.environ.get('LOCAL_RANK', get_dist_info()[0])) == 0
    try:
        if is_first and not cached.is_file():
            _fetch_whole(url, fetch, cached)
    finally:
        barrier()
    return find_file(cached)


def _fetch_whole(url: str, fetch: Callable[[str, Path], None], cached: Path) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    print_log(f'fetching {url} into {cached}', 'current')
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        partial = Path(folder) / cached.name
        try:
            fetch(url, partial)
        except (OSError, ValueError) as error:
            raise CheckpointError(f'{url} cannot be fetched: {error}') from error
        os.replace(partial, cached)


def _fetch_http(url: str, path: Path) -> None:
    with urlopen(url) as response, path.open('wb') as file:
        shutil.copyfileobj(response, file)
        expected = response.headers.get('Content-Length')
    if expected is not None and int(expected) != path.stat().st_size:
        raise OSError(f'it ended after {path.stat().st_size} of {expected} bytes')


def _fetch_from_backend(url: str, path: Path) -> None:
    backend = get_file_backend(url, backend_args=dict(backend='petrel'))
    path.write_bytes(backend.get(url))


def _refuse(url: str) -> Path:
    raise CheckpointError(f'{url} is not fetched: fetch it yourself, and name the local file')


def _from_openmmlab(name: str) -> Path:
    """A model of OpenMMLab's list, which names URLs and files of mmengine's home folder."""
    model = name.partition('://')[2]
    model = zoo.get_deprecated_model_names().get(model, model)
    address = _look_up(name, model, zoo.get_external_models())
    if '://' in address:
        return download(address)
    return find_file(os.path.join(zoo._get_mmengine_home(), address))


def _from_torchvision(name: str) -> Path:
    return download(_look_up(name, name.partition('://')[2], zoo.get_torchvision_models()))


def _from_mmcls(name: str) -> Path:
    return download(_look_up(name, name.partition('://')[2], zoo.get_mmcls_models()))


def _look_up(name: str, model: str, addresses: dict[str, str]) -> str:
    if model not in addresses:
        raise CheckpointError(f'{name}: no such model is listed; {len(addresses)} others are')
    return addresses[model]


# Patterns of mmengine's schemes, each with what makes a file of such a name.
FETCHERS: dict[str, Callable[[str], Path]] = {
    'http://': download,
    'https://': download,
    'open-mmlab://': _from_openmmlab,
    'openmmlab://': _from_openmmlab,
    'torchvision://': _from_torchvision,
    'modelzoo://': _from_torchvision,
    'mmcls://': _from_mmcls,
    'pavi://': _refuse,
    r'(\S+\:)?s3://': lambda url: _once_a_machine(url, _fetch_from_backend),
    r'(\S+\:)?petrel://': lambda url: _once_a_machine(url, _fetch_from_backend),
}
