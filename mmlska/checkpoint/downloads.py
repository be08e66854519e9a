"""Checkpoints that are not on this machine: every scheme of mmengine becomes a local file."""

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import checkpoint as zoo

from .files import CheckpointError, find_file

HEX_DIGITS = 12
HASHED_AT_ONCE = 2**20


def download(
    url: str, cache_dir: str | os.PathLike | None = None, sha256: str | None = None
) -> Path:
    """Fetch an ``http://`` or ``https://`` URL into the cache, once on each machine.

    The name in the cache holds a hash of the URL, so that two files of one name are two files. A
    download takes that name only when it is complete; one that was cut goes on where it ended, if
    the server says that its file is still the same.

    Args:
        url (str): Address of the file.
        cache_dir (str | PathLike, optional): Folder of the cache. Defaults to None: that of
            :mod:`torch.hub`.
        sha256 (str, optional): Hexadecimal digits that the file's hash begins with. A file in the
            cache is checked as well. Defaults to None.

    Raises:
        CheckpointError: If the download fails, ends early, or has another hash.
    """
    return _once_a_machine(url, _fetch_http, cache_dir, sha256)


def cached_path(url: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """Where a URL's file lies in the cache, the hub's by default."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints' if cache_dir is None else Path(cache_dir)
    name = PurePosixPath(urlsplit(url).path)
    digest = hashlib.sha256(url.encode()).hexdigest()[:HEX_DIGITS]
    return folder.expanduser() / f'{name.stem}-{digest}{name.suffix}'


def check_sha256(path: Path, expected: str | None) -> None:
    """Compare a file with the digits that its hash begins with; None checks nothing.

    Raises:
        ValueError: If ``expected`` is no hash.
        CheckpointError: If the file has another one.
    """
    if expected is None:
        return
    if not re.fullmatch(r'[0-9a-fA-F]{8,64}', expected):
        raise ValueError(f'sha256={expected!r} is no hash: 64 hexadecimal digits, or the first 8')
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
    found = digest.hexdigest()
    if not found.startswith(expected.lower()):
        raise CheckpointError(f'{str(path)!r} has the SHA-256 {found}, and {expected} is expected')


def _once_a_machine(
    url: str,
    fetch: Callable[[str, Path], None],
    cache_dir: str | os.PathLike | None = None,
    sha256: str | None = None,
) -> Path:
    """Fetch in the first process of each machine, while the others wait.

    Raises:
        CheckpointError: See :func:`download`; or if the folder of the cache cannot be written into.
    """
    cached = cached_path(url, cache_dir)
    is_first = int(os.environ.get('LOCAL_RANK', get_dist_info()[0])) == 0
    try:
        if is_first and not cached.is_file():
            _fetch_whole(url, fetch, cached, sha256)
        elif is_first:
            check_sha256(cached, sha256)
    except OSError as error:
        raise CheckpointError(
            f'{url} cannot be kept in {str(cached.parent)!r} ({error}): set TORCH_HOME to a folder '
            'that can be written into, or fetch it yourself and name the local file'
        ) from error
    finally:
        barrier()
    return find_file(cached)


def _fetch_whole(
    url: str, fetch: Callable[[str, Path], None], cached: Path, sha256: str | None
) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    # The folder may be shared with other machines.
    partial = cached.with_name(f'{cached.name}.{platform.node()}.part')
    # Another job of this machine may want the same file.
    with FileLock(_lock_of(partial)):
        if cached.is_file():
            return check_sha256(cached, sha256)
        print_log(f'fetching {url} into {cached}', 'current')
        try:
            fetch(url, partial)
        except (OSError, ValueError, HTTPException) as error:
            raise CheckpointError(f'{url} cannot be fetched: {error}') from error
        _tag(partial).unlink(missing_ok=True)
        try:
            check_sha256(partial, sha256)
        except CheckpointError:
            partial.unlink()
            raise
        os.replace(partial, cached)


def _lock_of(partial: Path) -> Path:
    """What jobs of this user and machine lock: not beside the weights, where it would stay."""
    user = os.getuid() if hasattr(os, 'getuid') else ''
    digest = hashlib.sha256(f'{user} {partial.absolute()}'.encode()).hexdigest()[:HEX_DIGITS]
    return Path(tempfile.gettempdir(), f'mmlska-{digest}.lock')


def _tag(partial: Path) -> Path:
    """Where the server's mark of the file lies of which ``partial`` is the beginning."""
    return partial.with_name(f'{partial.name}.tag')


def _fetch_http(url: str, path: Path) -> None:
    """Fetch a file, or the rest of one whose beginning is there and still the server's."""
    tag = _tag(path)
    begun = path.stat().st_size if path.exists() and tag.exists() else 0
    with _open_from(url, begun, tag) as response:
        goes_on = response.status == HTTPStatus.PARTIAL_CONTENT
        mark = response.headers.get('ETag') or response.headers.get('Last-Modified')
        if mark and not mark.startswith('W/'):
            tag.write_text(mark, encoding='utf-8')
        else:
            tag.unlink(missing_ok=True)
        expected = response.headers.get('Content-Length')
        with path.open('ab' if goes_on else 'wb') as file:
            shutil.copyfileobj(response, file)
    size = path.stat().st_size - (begun if goes_on else 0)
    if expected is not None and int(expected) != size:
        raise OSError(f'it ended after {size} of {expected} bytes')


def _open_from(url: str, begun: int, tag: Path) -> HTTPResponse:
    """The answer of a server that is asked for what follows the first ``begun`` bytes."""
    if not begun:
        return urlopen(url)
    # RFC 9110: the range is sent if the file is the same, else the whole file.
    resume = {'Range': f'bytes={begun}-', 'If-Range': tag.read_text(encoding='utf-8')}
    try:
        return urlopen(Request(url, headers=resume))
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return urlopen(url)


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
