"""Layers and backbones of mmlska in the YAML files of Ultralytics' YOLO.

Ultralytics is under AGPL-3.0: what is built with it falls under that licence. mmlska does not
depend on it, imports it in functions alone, and holds nothing of it.

``register()`` makes the names known to this process; rows then read ``[-1, 1, LSKA, [11]]``. Tried
with ultralytics 8.4.190.
"""

import copy
import re
import sys
from collections.abc import Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmlska.layers import (
    ECA,
    LKA,
    LSKA,
    ContextAggregation,
    DFCAttention,
    IdentityStart,
    LKATrivial,
    LSKATrivial,
    MixedAffinity,
)

LAYERS = (
    *(LSKA, LKA, LSKATrivial, LKATrivial, ECA, ContextAggregation, DFCAttention, MixedAffinity),
    IdentityStart,
)
BACKBONES = ('VAN', 'GhostNetV2', 'ContainerLight')
# Arguments by which a row of ours asks Ultralytics' parser for its own variables of these names:
# the channels of all layers so far, and where the row's input comes from.
PARSER_VARIABLES = ('ch', 'f')
SECTIONS = ('backbone', 'head')


def register() -> list[str]:
    """Let YAML files of Ultralytics name our layers and backbones, and return the names.

    ==========================================  ====================================================
    row                                         layer
    ==========================================  ====================================================
    ``[-1, 1, LSKA, [11]]``                     ``LSKA(in_channels, 11)``; the channels are those of
                                                the row that ``-1`` means
    ``[-1, 1, ECA, [{kernel_size: 3}]]``        ``ECA(in_channels, kernel_size=3)``
    ``[6, 1, IdentityStart, [{type: LSKA}]]``   ``IdentityStart(in_channels, dict(type='LSKA'))``
    ``[-1, 1, VAN, [{arch: tiny}]]``            a backbone, whose maps rows such as
                                                ``[0, 1, Index, [64, 1]]`` take: channels, position
    ==========================================  ====================================================

    Models are built of the layers themselves, so that a saved one is read wherever mmlska can be
    imported; to build it anew (training, resuming) the process calls ``register()``, as
    ``python -m mmlska yolo`` does.

    Raises:
        ImportError: If ultralytics is not installed.
    """
    from ultralytics.nn import tasks

    names = _rows()
    for name, row in names.items():
        setattr(tasks, name, row)
    if not hasattr(tasks.parse_model, '_mmlska'):
        tasks.parse_model = _completing(tasks.parse_model)
    return list(names)


def _rows() -> dict[str, type[nn.Module]]:
    """What stands for each name in Ultralytics' parser."""
    from mmlska import models

    kinds = [*LAYERS, *(getattr(models, name) for name in BACKBONES)]
    return {kind.__name__: _row(kind) for kind in kinds}


def _row(kind: type[nn.Module]) -> type[nn.Module]:
    """A class whose call is a layer of another class, with the input channels filled in."""

    def build(cls: type, channels: list[int], source: int, *options: Any) -> nn.Module:
        return _build(kind, channels, source, options)

    return type(kind.__name__, (nn.Module,), {'__new__': build, '__module__': __name__})


def _build(kind: type[nn.Module], channels: list[int], source: int, options: tuple) -> nn.Module:
    named = {}
    # The config of a layer is an argument, any other mapping holds arguments by name.
    if options and isinstance(options[-1], Mapping) and 'type' not in options[-1]:
        *options, named = options
    in_channels = channels[source]
    if kind in LAYERS:
        return kind(in_channels, *options, **named)
    return kind(*options, **{'in_channels': in_channels, **named})


def _completing(parse_model: Any) -> Any:
    """Ultralytics' parser, for rows of ours too."""

    @wraps(parse_model)
    def parse(d: dict, ch: int, verbose: bool = True) -> Any:
        d = copy.deepcopy(d)
        names = _rows()
        for section in SECTIONS:
            for row in d[section]:
                if row[2] in names:
                    _check_source(row)
                    row[3] = [*PARSER_VARIABLES, *row[3]]
        return parse_model(d, ch, verbose)

    parse._mmlska = True
    return parse


def _check_source(row: list) -> None:
    """A layer of ours has one input.

    Raises:
        ValueError: If the row names several.
    """
    if isinstance(row[0], list):
        if len(row[0]) != 1:
            raise ValueError(
                f'{row[2]} takes one map, and the row names {row[0]}: put a row '
                f'[{row[0]}, 1, Concat, [1]] before it, and let it take -1'
            )
        (row[0],) = row[0]


def insert(
    source: Any,
    after: str | int = 'SPPF',
    layer: str = 'LSKA',
    args: Iterable = (),
    save_as: str | Path | None = None,
) -> Any:
    """Insert a layer into a YOLO, and keep the weights of a trained one.

    Rows behind the new one move by one place, and so do the weights; rows that took the map of the
    old one take that of the new one. ``layer='IdentityStart', args=[dict(type='LSKA')]`` changes no
    output of a trained model.

    Args:
        source: A YAML file, its content, or a model: ``YOLO('best.pt')``.
        after (str | int): Row to insert behind: its module, which must occur once, or its index.
            Defaults to 'SPPF'.
        layer (str): A name that :func:`register` returns. Defaults to 'LSKA'.
        args (Iterable): Arguments of the row. Defaults to ().
        save_as (str | Path, optional): YAML file to write. Defaults to None.

    Returns:
        The content of the YAML file; for a model, the new model with all weights of the old one.

    Raises:
        ValueError: If the place or the layer is unknown, or not all weights found a place.
    """
    names = register()
    if layer not in names:
        raise ValueError(f'layer={layer!r} is unknown: allowed are {", ".join(names)}')
    is_model = hasattr(source, 'model')
    content = copy.deepcopy(source.model.yaml) if is_model else _read(source)
    index = _find_row(content, after)
    changed = _insert_row(content, index, [-1, 1, layer, list(args)])
    if changed.get('scale'):
        # The name of a file chooses among several; the new file may be called anything.
        changed['scales'] = {changed['scale']: changed['scales'][changed['scale']]}
    if save_as is not None:
        _write(changed, save_as)
    return _rebuild(source, changed, index) if is_model else changed


def _read(source: Any) -> dict:
    from ultralytics.nn.tasks import yaml_model_load

    return copy.deepcopy(dict(source)) if isinstance(source, Mapping) else yaml_model_load(source)


def _write(content: dict, path: str | Path) -> None:
    from ultralytics.utils import YAML

    YAML.save(path, {key: value for key, value in content.items() if key != 'yaml_file'})


def _find_row(content: dict, after: str | int) -> int:
    """The index of a row over both sections."""
    modules = [row[2] for section in SECTIONS for row in content[section]]
    if isinstance(after, int):
        found = [after] if 0 <= after < len(modules) - 1 else []
    else:
        found = [i for i, name in enumerate(modules[:-1]) if name == after]
    if len(found) != 1:
        where = f'at rows {found}: name one by its index' if found else 'nowhere'
        listed = ', '.join(f'{i} {name}' for i, name in enumerate(modules[:-1]))
        raise ValueError(f'after={after!r} is {where}. The rows are {listed}')
    return found[0]


def _insert_row(content: dict, index: int, row: list) -> dict:
    """The content with a row behind ``index``; later rows and references to them move."""
    changed, at = copy.deepcopy(content), index + 1
    first_of_head = len(changed['backbone'])
    for section in SECTIONS:
        start = 0 if section == 'backbone' else first_of_head
        for number, old in enumerate(changed[section], start):
            old[0] = _moved(old[0], number, at)
    # The last row of the backbone is followed in the backbone.
    section, place = ('backbone', at) if at <= first_of_head else ('head', at - first_of_head)
    changed[section].insert(place, row)
    return changed


def _moved(source: int | list, number: int, at: int) -> int | list:
    """Where a row takes its map from, once a row is inserted at index ``at``.

    A reference to the row before the new one becomes one to the new one.
    """
    if isinstance(source, list):
        return [_moved(entry, number, at) for entry in source]
    if source >= 0:
        return source + 1 if source >= at - 1 else source
    is_across = number >= at and number + source < at - 1
    return source - 1 if is_across else source


def _rebuild(source: Any, content: dict, index: int) -> Any:
    """A model of the changed content with the weights of the old one."""
    old = source.model
    new = type(old)(content, ch=content.get('channels', 3), nc=content.get('nc'), verbose=False)
    weights = shift_weights(old.state_dict(), index)
    missing, unexpected = new.load_state_dict(weights, strict=False)
    wrong = [key for key in missing if not key.startswith(f'model.{index + 1}.')] + unexpected
    if wrong:
        raise ValueError(f'{len(wrong)} weights found no place, the first is {wrong[0]}')
    new.names, new.args = old.names, getattr(old, 'args', {})
    result = copy.copy(source)
    # A shallow copy of a module shares its parts.
    result._modules = dict(source._modules)
    result.model = new.train(old.training)
    result.ckpt = {'model': new}
    result.overrides = {**source.overrides}
    result.predictor = None
    return result


def shift_weights(weights: Mapping[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """Weights of a YOLO under the names that they have with one more row behind ``index``.

    Example:
        >>> sorted(shift_weights({'model.9.cv1.weight': 0, 'model.10.conv.bias': 1}, 9))
        ['model.11.conv.bias', 'model.9.cv1.weight']
    """

    def shifted(key: str) -> str:
        number = re.match(r'model\.(\d+)\.', key)
        if number is None or int(number[1]) <= index:
            return key
        return f'model.{int(number[1]) + 1}.{key[number.end() :]}'

    return {shifted(key): value for key, value in weights.items()}


def run_yolo(arguments: list[str]) -> None:
    """Pass a command line on to ``yolo``, with our names registered.

    Raises:
        SystemExit: If ultralytics is not installed; the message says how to install it.
    """
    try:
        from ultralytics.cfg import entrypoint
    except ImportError as error:
        raise SystemExit(
            f'ultralytics cannot be imported ({error}): pip install ultralytics. It is under '
            'AGPL-3.0, and so is what is built with it'
        ) from error
    register()
    # What Ultralytics reads is this very list.
    sys.argv[:] = ['yolo', *arguments]
    entrypoint()
