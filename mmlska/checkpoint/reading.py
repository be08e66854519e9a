import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

from .naming import is_backbone

WRAPPERS = ('state_dict', 'model', 'state_dict_ema')
PUBLISHED = (
    'LSKA weights are published at '
    'https://github.com/StevenLauHKHK/Large-Separable-Kernel-Attention, '
    'LKA weights at https://github.com/Visual-Attention-Network/VAN-Classification, '
    'GhostNetV2 weights at '
    'https://github.com/huawei-noah/Efficient-AI-Backbones/releases/tag/GhostNetV2, '
    'CONTAINER-Light weights at https://github.com/allenai/container'
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or whose weights do not fit the model."""


def _history_buffer_method(owner: type, name: str):
    """What mmengine's checkpoints need of ``getattr``, and no more."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _safe_globals() -> list:
    """Plain data that training scripts put beside the weights: timm's options, mmengine's logs."""
    multiarray = getattr(np, '_core', None) or np.core
    numpy_functions = [
        (getattr(multiarray.multiarray, name), f'numpy.{core}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for core in ('core', '_core')
    ]
    numpy_types = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in np.typecodes['All']}]
    return [
        argparse.Namespace,
        HistoryBuffer,
        (_history_buffer_method, 'builtins.getattr'),
        *numpy_functions,
        *numpy_types,
    ]


def read_checkpoint(path: str | os.PathLike, map_location='cpu'):
    """Read a checkpoint file without running any code that it may hold.

    Args:
        path (str | PathLike): A ``.safetensors`` file, or anything that ``torch.save`` wrote.
        map_location: As in :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: What the file holds.

    Raises:
        FileNotFoundError: If there is no such file. The message says where weights are published.
        CheckpointError: If the file is truncated, is no checkpoint, or asks for code to be run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist. {PUBLISHED}.')
    try:
        if path.suffix == '.safetensors':
            return _read_safetensors(path, map_location)
        return _read_torch(path, map_location)
    except pickle.UnpicklingError as error:
        if 'Unsupported operand' in str(error):
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f'checkpoint {str(path)!r} is refused: it holds more than weights and plain data, '
            f'and reading it could run code ({_reason(error)})'
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path, map_location):
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return torch.load(path, map_location=map_location, weights_only=True)
    with torch.serialization.safe_globals(_safe_globals()):
        return torch.load(path, map_location=map_location, weights_only=True)


def _read_safetensors(path: Path, map_location) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    device = 'cpu' if map_location is None else str(map_location)
    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _reason(error: Exception) -> str:
    """What was wrong, without the advice on how to read the file all the same."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    return text.partition('\n')[0].partition('. ')[0] or type(error).__name__


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read: it is truncated '
        f'or no checkpoint ({_reason(error)}). Fetch it again. {PUBLISHED}.'
    )


def unwrap(checkpoint: Mapping) -> Mapping:
    """The weights inside a checkpoint: 'state_dict' before 'model' before 'state_dict_ema'."""
    for wrapper in WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            return unwrap(checkpoint[wrapper])
    return checkpoint


def load_from_local(filename: str, map_location=None) -> dict:
    """Read a local file for mmengine: safely, and in every format that other codebases write.

    A child of a model sees only the weights under its own name, so the weights of a bare backbone
    are offered under ``backbone.`` as well: ``load_from`` can then fill a detector's backbone.

    Args:
        filename (str): Path of the file.
        map_location: As in :func:`torch.load`. Defaults to None.

    Returns:
        dict: The checkpoint, with the weights of a backbone in ``state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read.
    """
    checkpoint = read_checkpoint(filename, map_location)
    if not isinstance(checkpoint, Mapping):
        return checkpoint
    state_dict = {key.removeprefix('module.'): value for key, value in unwrap(checkpoint).items()}
    inside = [key.removeprefix('backbone.') for key in state_dict if key.startswith('backbone.')]
    as_mmengine_expects = inside and 'state_dict' in checkpoint
    if as_mmengine_expects or not is_backbone(inside or list(state_dict)):
        return checkpoint
    offered = {} if inside else {f'backbone.{key}': value for key, value in state_dict.items()}
    return {**checkpoint, 'state_dict': {**state_dict, **offered}}


def load_from_http(filename: str, map_location=None) -> dict:
    """Read a URL for mmengine; the file is kept in the hub's cache and read like a local one.

    Args:
        filename (str): URL of the file.
        map_location: As in :func:`torch.load`. Defaults to None.
    """
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(filename).path).name
    if get_dist_info()[0] == 0 and not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(cached), progress=os.isatty(0))
    barrier()
    return load_from_local(str(cached), map_location)


def register_loaders() -> None:
    """Let mmengine read local files and URLs through this module.

    Its own loader falls back to running the code in a file that it cannot read safely. Before torch
    2.6 the plain data of a training checkpoint cannot be told to ``torch.load`` as harmless, so
    there mmengine keeps its own loader.
    """
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        CheckpointLoader.register_scheme('', load_from_local, force=True)
        CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    else:
        CheckpointLoader.register_scheme(r'.*\.safetensors$', load_from_local, force=True)
