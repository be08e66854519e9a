"""A backbone out of its weights: what they are of is read off their names and shapes."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log
from torch import nn

from mmlska.checkpoint import CheckpointError, read_checkpoint, to_mmlska, unwrap
from mmlska.checkpoint.downloads import check_sha256, download
from mmlska.checkpoint.files import find_file
from mmlska.checkpoint.known_weights import BY_HAND, KNOWN_WEIGHTS
from mmlska.checkpoint.naming import (
    HEAD_KEY,
    OTHER_BACKBONES,
    STAGE_NORM_EPS,
    VAN_KEY,
    canonical,
    naming_of,
)
from mmlska.checkpoint.own_models import SCHEME, find_own_model, own_models
from mmlska.checkpoint.reading import check_keys
from mmlska.checkpoint.recognition import find_backbone, recognise_sizes, recognise_van

from .backbones import VAN, ContainerLight, GhostNetV2
from .backbones.ghostnetv2 import recognise_width


class Family(NamedTuple):
    """A kind of backbone, and how its weights are known.

    Attributes:
        build (type): Its class.
        is_name (Callable): Whether a name, ours, is that of one of its weights.
        recognise (Callable): Options of the class, from weights under our names and the codebase
            that has named them; empty if the weights are of no such backbone.
    """

    build: type[nn.Module]
    is_name: Callable[[str], object]
    recognise: Callable[[Mapping, str], dict[str, Any]]


def from_pretrained(
    source: str | os.PathLike,
    sha256: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> nn.Module:
    """Build the backbone that weights are of, with these weights.

    Architecture, attention and kernel size come from names and shapes, the epsilon of the stage
    norms from the codebase that has named them.

    Args:
        source (str | PathLike): A file, an ``http://`` or ``https://`` address, ``mmlska://NAME``
            for a model that comes with this package, or a name of
            :data:`mmlska.checkpoint.known_weights.KNOWN_WEIGHTS`, e.g. ``'van-b0'``. A file that
            was fetched before is taken from the cache, without a network.
        sha256 (str, optional): Hexadecimal digits that the file's hash begins with, 8 to 64.
            Defaults to None: those of the table, where it has some.
        cache_dir (str | PathLike, optional): Where downloads are kept. Defaults to None: the
            folder of :mod:`torch.hub`.
        **options: Further options of the backbone, e.g. ``out_indices=(3,)``; they win.

    Returns:
        nn.Module: :class:`VAN`, :class:`GhostNetV2` or :class:`ContainerLight`, in evaluation.

    Raises:
        ValueError: If a name is unknown; the message has the nearest ones.
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file cannot be fetched or read, has another hash, is of no such
            backbone, or does not fit ``options``, or no model of the package has that name.

    Example::

        import mmlska

        model = mmlska.from_pretrained('van-b0', out_indices=(3,))
        (features,) = model(images)
    """
    path = _find(source, sha256, cache_dir)
    checkpoint = read_checkpoint(path)
    check_keys(checkpoint)
    weights = unwrap(checkpoint)
    build, recognised = recognise_backbone(weights)
    chosen = {**recognised, **options}
    told = ', '.join(f'{key}={value!r}' for key, value in chosen.items())
    print_log(f'{source}: {build.__name__}({told})', 'current')
    model = build(**chosen)
    model.load_state_dict(weights)
    return model.eval()


def recognise_backbone(weights: Mapping) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class and the options that weights are of.

    Args:
        weights (Mapping): Weights in the names of any codebase, perhaps inside a larger model.

    Raises:
        CheckpointError: If they are of none of our backbones, or of a VAN whose attention is none
            of the large-kernel family.
    """
    for family in FAMILIES:
        found = find_backbone(weights, family.is_name).backbone
        backbone = {key: value for key, value in found.items() if not HEAD_KEY.fullmatch(key)}
        options = family.recognise(to_mmlska(backbone), naming_of(list(backbone)))
        if options:
            return family.build, options
    first = ', '.join(map(canonical, list(weights)[:3])) or 'nothing'
    names = ', '.join(family.build.__name__ for family in FAMILIES)
    raise CheckpointError(f'the checkpoint is of none of {names}: it holds {first}')


def _find(
    source: str | os.PathLike, sha256: str | None, cache_dir: str | os.PathLike | None
) -> Path:
    """The local file of a source."""
    text = os.fspath(source)
    if text in KNOWN_WEIGHTS:
        known = KNOWN_WEIGHTS[text]
        print_log(f'{text}: weights of {known.publisher}, licence: {known.licence}', 'current')
        return download(known.url, cache_dir, sha256 or known.sha256)
    if re.match(r'https?://', text):
        return download(text, cache_dir, sha256)
    if _is_name(source):
        raise ValueError(_unknown(text))
    path = find_own_model(text) if text.startswith(SCHEME) else find_file(source)
    check_sha256(path, sha256)
    return path


def _is_name(source: str | os.PathLike) -> bool:
    """Whether a text is meant for a name: no file, no folder in it, no suffix of weights."""
    looks_like_a_file = re.search(r'[/\\]|\.(pth|pt|tar|bin|safetensors)$', os.fspath(source))
    return isinstance(source, str) and not looks_like_a_file and not Path(source).exists()


def _unknown(name: str) -> str:
    by_hand = [where for start, where in BY_HAND.items() if name.startswith(start)]
    if by_hand:
        return (
            f'{name!r} has no address that a program can fetch: get the file from {by_hand[0]}, '
            'and pass its path'
        )
    names = [*KNOWN_WEIGHTS, *(SCHEME + own for own in own_models())]
    near = difflib.get_close_matches(name, names, n=6) or names
    return f'{name!r} is neither a file nor a known name: the nearest names are {", ".join(near)}'


def _recognise_van(weights: Mapping, naming: str) -> dict[str, Any]:
    options = recognise_van(weights)
    if not options or 'blocks1.0.attn.proj_1.weight' not in weights:
        return {}
    if options['attention'] is None:
        raise CheckpointError(
            'the checkpoint holds a VAN whose attention is none of LSKA, LKA, LSKATrivial and '
            'LKATrivial: build it as its author did, and name the file in init_cfg'
        )
    eps = STAGE_NORM_EPS.get(naming)
    return options if eps is None else {**options, 'stage_norm_cfg': dict(type='LN', eps=eps)}


def _recognise_ghostnetv2(weights: Mapping, naming: str) -> dict[str, Any]:
    width = recognise_width(weights)
    return {} if width is None else dict(width=width)


def _recognise_container(weights: Mapping, naming: str) -> dict[str, Any]:
    sizes = recognise_sizes(weights)
    mixes_everywhere = 'blocks1.0.sa_weight' in weights
    for name, settings in ContainerLight.arch_zoo.items():
        fits = all(settings[key] == value for key, value in sizes.items())
        if sizes and fits and mixes_everywhere == (name == 'full'):
            return dict(arch=name)
    return {}


FAMILIES = (
    Family(VAN, VAN_KEY.fullmatch, _recognise_van),
    Family(GhostNetV2, OTHER_BACKBONES['GhostNetV2'][0].fullmatch, _recognise_ghostnetv2),
    Family(ContainerLight, OTHER_BACKBONES['CONTAINER'][0].fullmatch, _recognise_container),
)
