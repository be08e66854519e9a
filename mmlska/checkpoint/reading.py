"""Reading a checkpoint file into a dict, without running any code that it may hold.

mmengine reads every file of a process through one table of loaders, before it asks any model or
hook: whose weights a file holds is known only once it has been read. Its own loaders fall back to
unpickling whatever they cannot read safely, and so run the code in a hostile file.
:func:`register_loaders` therefore puts ours into that table for every model of the process, not for
ours alone. Other models' checkpoints arrive as mmengine would hand them over, except that

* a file which asks for code is refused; :data:`TRUST` names files that may run theirs,
* a ``config`` text in ``meta``, which mmengine would run on resuming, is left out.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_readers
from mmengine.utils import digit_version

from .downloads import FETCHERS
from .files import (
    CheckpointError,
    check_kind,
    find_file,
    is_safetensors,
    where_else,
)
from .memory import check_memory
from .naming import find_places, is_backbone, without_wrappers
from .own_models import SCHEME as OWN_SCHEME
from .own_models import find_own_model, own_models
from .plain_types import plain_types

WRAPPERS = ('state_dict', 'model', 'state_dict_ema')
# Environment variable with the paths of files that may run code, separated as in PATH.
TRUST = 'MMLSKA_TRUST'
# Before this release plain data beside the weights cannot be told to ``torch.load`` as harmless.
KNOWS_SAFE_GLOBALS = digit_version(torch.__version__) >= digit_version('2.6.0')

# The protocol of ``torch.save``, the only one that ``torch.load`` reads safely.
SAFE_PROTOCOL = 2

MapLocation = str | torch.device | dict | Callable | None


def read_checkpoint(
    path: str | os.PathLike, map_location: MapLocation = 'cpu', trust: bool | None = None
) -> Any:
    """Read a checkpoint file without running any code that it may hold.

    Args:
        path (str | PathLike): A safetensors file, or anything that ``torch.save`` wrote; what it
            is, its content tells, not its suffix.
        map_location: As in :func:`torch.load`. Defaults to 'cpu'.
        trust (bool, optional): Whether the file may run code. Defaults to None: only a file that
            the environment variable ``MMLSKA_TRUST`` names.

    Returns:
        What the file holds, in most cases a dict.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated, is no checkpoint, asks for more memory than it
            has bytes, or asks for code to be run. The message says what can be done.
    """
    path = find_file(path)
    trust = is_trusted(path) if trust is None else trust
    try:
        if is_safetensors(path):
            return _read_safetensors(path, map_location)
        if path.suffix == '.safetensors' and zipfile.is_zipfile(path):
            # torch.load goes by the suffix.
            raise CheckpointError(f'{str(path)!r} is a file of torch.save: rename it to .pth')
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        check_kind(path)
        return _read_torch(path, map_location)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    # A damaged pickle fails wherever its damage leads.
    except Exception as error:
        raise _unreadable(path, error) from error


def is_trusted(path: Path) -> bool:
    """Whether the environment variable ``MMLSKA_TRUST`` names the file."""
    named = filter(None, os.environ.get(TRUST, '').split(os.pathsep))
    files = [Path(os.path.expanduser(name)) for name in named]
    return any(file.exists() and file.samefile(path) for file in files)


def _read_torch(path: Path, map_location: MapLocation) -> Any:
    if not KNOWS_SAFE_GLOBALS:
        check_memory(path)
        return torch.load(path, map_location=map_location, weights_only=True)
    with torch.serialization.safe_globals(plain_types()), warnings.catch_warnings():
        # Of the protocol, which is harmless.
        warnings.simplefilter('ignore')
        check_memory(path)
        if zipfile.is_zipfile(path):
            # Mapped storages cannot grow: a tensor larger than its bytes fails before any memory is
            # asked for.
            torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        return torch.load(path, map_location=map_location, weights_only=True)


def _read_safetensors(path: Path, map_location: MapLocation) -> dict:
    from safetensors.torch import load_file

    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    return load_file(path, device=str(device))


def _reason(error: Exception) -> str:
    """What was wrong, without the advice on how to read the file all the same."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    return text.partition('\n')[0].partition('. ')[0] or type(error).__name__


def _refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    if 'Unsupported operand' in str(error):
        return _unreadable(path, error)
    found = re.search(r'GLOBAL (\S+)', str(error))
    what = f'a {found[1]}' if found else 'more than weights and plain data'
    return CheckpointError(
        f'checkpoint {str(path)!r} is refused: it holds {what}, and reading it could run code '
        f'({_reason(error)}). If you trust the file, set {TRUST}={path}; else ask its author for '
        'the weights alone, as a safetensors file'
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    protocol = pickle_protocol(path)
    if SAFE_PROTOCOL < protocol <= pickle.HIGHEST_PROTOCOL:
        return CheckpointError(
            f'checkpoint {str(path)!r} is refused: it is written with pickle_protocol={protocol}, '
            f'and only protocol {SAFE_PROTOCOL} can be read without running code. If you trust the '
            f'file, set {TRUST}={path}; else ask its author to save it without pickle_protocol'
        )
    return CheckpointError(
        f'checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read: it is truncated '
        f'or no checkpoint ({_reason(error)}). {where_else(path)}'
    )


def pickle_protocol(path: Path) -> int:
    """The protocol that the pickle of a file of ``torch.save`` states; 0 if it states none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith('data.pkl')]
            start = archive.open(names[0]).read(2) if names else b''
    # No archive, or a damaged one, which fails wherever its damage leads.
    except Exception:
        with path.open('rb') as file:
            start = file.read(2)
    return start[1] if len(start) == 2 and start[:1] == pickle.PROTO else 0


def unwrap(checkpoint: Mapping) -> Mapping:
    """The weights inside a checkpoint: 'state_dict' before 'model' before 'state_dict_ema'.

    Under any other name ('module', 'ema_state_dict', ...) a dict of tensors counts where none lies
    beside it; of several, each begins the names of its weights: ``teacher.blocks1...``.

    Raises:
        CheckpointError: If a wrapper holds itself.
    """
    seen = {id(checkpoint)}
    while (wrapper := find_wrapper(checkpoint)) is not None:
        checkpoint = checkpoint[wrapper]
        if id(checkpoint) in seen:
            raise CheckpointError('the checkpoint holds itself instead of weights')
        seen.add(id(checkpoint))
    return {
        f'{name}.{key}': checkpoint[name][key]
        for name in _named_weights(checkpoint)
        for key in checkpoint[name]
    } or checkpoint


def find_wrapper(checkpoint: Mapping) -> str | None:
    """The key under which a checkpoint holds the weights; None if it is them, or has several."""
    usual = [key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]
    others = _named_weights(checkpoint)
    return usual[0] if usual else others[0] if len(others) == 1 else None


def _named_weights(checkpoint: Mapping) -> list[str]:
    """Keys of the dicts of tensors in a checkpoint that has no tensor beside them."""
    if any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        return []
    return [
        key
        for key, value in checkpoint.items()
        if isinstance(value, Mapping)
        and isinstance(key, str)
        and any(isinstance(entry, torch.Tensor) for entry in value.values())
    ]


def check_keys(weights: Mapping) -> None:
    """Refuse weights that are no dict by name.

    Raises:
        CheckpointError: If they are no mapping, or a key is no text. The message names it.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(f'the checkpoint holds a {type(weights).__name__}, and no weights')
    wrong = [key for key in weights if not isinstance(key, str)]
    if wrong:
        raise CheckpointError(
            f'the checkpoint has the key {wrong[0]!r} ({type(wrong[0]).__name__}), '
            'but weights are named by text'
        )
    metadata = getattr(weights, '_metadata', {})
    versions = metadata.values() if isinstance(metadata, Mapping) else [metadata]
    if not all(
        isinstance(entry, Mapping) and isinstance(entry.get('version', 1), (int, type(None)))
        for entry in versions
    ):
        raise CheckpointError('the _metadata of the checkpoint are no versions by module')


def load_from_local(filename: str, map_location: MapLocation = None) -> dict:
    """Read a local file for mmengine: safely, and in every format that other codebases write.

    A child of a model sees only the weights under its own name, so the weights of a bare backbone
    are offered under ``backbone.`` as well, whatever module they lay in: ``load_from`` can then
    fill a detector's backbone.

    Args:
        filename (str): Path of the file.
        map_location: As in :func:`torch.load`. Defaults to None.

    Returns:
        dict: The checkpoint, with the weights of a backbone in ``state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read, or holds no weights by name.
    """
    checkpoint = read_checkpoint(filename, map_location)
    if not isinstance(checkpoint, Mapping):
        check_keys(checkpoint)
    return offer_backbone(without_config_text(checkpoint))


def without_config_text(checkpoint: Mapping) -> Mapping:
    """The checkpoint without the text that mmengine would run when it resumes."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping) or 'config' not in meta:
        return checkpoint
    print_log('the config text of the checkpoint is left out: resuming would run it', 'current')
    return {**checkpoint, 'meta': {key: meta[key] for key in meta if key != 'config'}}


def offer_backbone(checkpoint: Mapping) -> Mapping:
    """The checkpoint with the weights of a bare backbone under ``backbone.`` as well.

    A checkpoint of anything else is returned as it is.
    """
    weights = unwrap(checkpoint)
    check_keys(weights)
    stripped = {without_wrappers(key): value for key, value in weights.items()}
    inside = [key.removeprefix('backbone.') for key in stripped if key.startswith('backbone.')]
    as_mmengine_expects = inside and 'state_dict' in checkpoint
    places = [''] if is_backbone(inside or list(stripped)) else find_places(list(stripped))
    if as_mmengine_expects or not places:
        return checkpoint
    # Of several the user chooses one, by the prefix of init_cfg.
    offered = {
        f'backbone.{key.removeprefix(places[0])}': value
        for key, value in stripped.items()
        if not inside and len(places) == 1 and key.startswith(places[0])
    }
    return {**checkpoint, 'state_dict': {**stripped, **offered}}


def load_from_http(filename: str, map_location: MapLocation = None) -> dict:
    """Read a URL for mmengine; see :func:`mmlska.checkpoint.downloads.download`."""
    return load_from_local(str(FETCHERS['http://'](filename)), map_location)


def load_from_mmcls(filename: str, map_location: MapLocation = None) -> dict:
    """Read the backbone of a classifier of mmengine's list, under its own names."""
    checkpoint = load_from_local(str(FETCHERS['mmcls://'](filename)), map_location)
    weights = checkpoint.get('state_dict', checkpoint)
    inside = [key for key in weights if key.startswith('backbone.')]
    return dict(state_dict={key.removeprefix('backbone.'): weights[key] for key in inside})


def load_from_own(filename: str, map_location: MapLocation = None) -> dict:
    """Read a model of the package, with the classes that it knows."""
    path = find_own_model(filename)
    weights = unwrap(load_from_local(str(path), map_location))
    model = own_models(path.parent)[filename.removeprefix(OWN_SCHEME)]
    return dict(state_dict=weights, meta=dict(dataset_meta=model.dataset_meta))


def _loader(fetch: Callable[[str], Path]) -> Callable:
    def load_from_fetched(filename: str, map_location: MapLocation = None) -> dict:
        return load_from_local(str(fetch(filename)), map_location)

    return load_from_fetched


# By mmengine's patterns of schemes.
LOADERS = {scheme: _loader(fetch) for scheme, fetch in FETCHERS.items()}
LOADERS |= {'http://': load_from_http, 'https://': load_from_http, 'mmcls://': load_from_mmcls}
LOADERS |= {OWN_SCHEME: load_from_own, '': load_from_local}


def register_loaders() -> None:
    """Let mmengine read files of every scheme through this module.

    Its own loaders run the code in a file that they cannot read safely. They are asked before any
    model or hook is, so that ours cannot take their place for our own models alone; of other
    models' files nothing is changed but a ``config`` text that mmengine would run. Before torch
    2.6, where no training checkpoint of mmengine can be read safely, mmengine reads as it does, and
    the weights of a bare backbone are offered here; safetensors files, which it does not know, are
    read here.
    """
    if not KNOWS_SAFE_GLOBALS:
        CheckpointLoader.register_scheme(r'.*\.safetensors$', load_from_local, force=True)
        CheckpointLoader.register_scheme('', _offering(mmengine_readers.load_from_local), True)
        http = _offering(mmengine_readers.load_from_http)
        CheckpointLoader.register_scheme(('http://', 'https://'), http, force=True)
        CheckpointLoader.register_scheme(OWN_SCHEME, LOADERS[OWN_SCHEME], force=True)
        return
    for scheme, loader in LOADERS.items():
        CheckpointLoader.register_scheme(scheme, loader, force=True)


def _offering(load: Callable[..., Any]) -> Callable[..., Any]:
    """A reader of mmengine, with the weights of a bare backbone offered to detectors too."""

    def read(filename: str, map_location: MapLocation = None) -> Any:
        try:
            checkpoint = load(filename, map_location)
        # PyTorch names no file.
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f'checkpoint {filename!r} cannot be read ({_reason(error)})'
            ) from error
        return offer_backbone(checkpoint) if isinstance(checkpoint, Mapping) else checkpoint

    return read
