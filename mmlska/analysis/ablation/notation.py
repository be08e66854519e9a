"""How a command line names layers, ``LSKA:kernel_size=7,11``, and places, ``after_conv3@2,3``."""

import ast
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmlska.models import VAN
from mmlska.models.backbones.van import PLUGIN_POSITIONS
from mmlska.registry import MODELS, find_model
from mmlska.shipped import nearest

NECK, ATTENTION = 'neck', 'attention'
RESNET_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
POSITIONS = (*RESNET_POSITIONS, *PLUGIN_POSITIONS, ATTENTION, NECK)
LAYER_EXAMPLE = 'LSKA:kernel_size=7,11,23'
PLACE_EXAMPLE = 'after_conv3@2,3,4'


@dataclass(frozen=True)
class Addition:
    """A layer to add, or several that act one after the other.

    Attributes:
        label: Its name in tables, such as ``'LSKA kernel_size=7'``.
        layer: Its config.
    """

    label: str
    layer: dict


@dataclass(frozen=True)
class Place:
    """Where a layer goes.

    Attributes:
        position: One of :data:`POSITIONS`.
        stages: Stages of the backbone, the first one being 1; None means all.
    """

    position: str
    stages: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.stages is None:
            return self.position
        return f'{self.position}@{",".join(map(str, self.stages))}'


def parse_additions(text: str | Mapping) -> list[Addition]:
    """Layers that one word of the command line, or one entry of a file, stands for.

    Args:
        text: ``TYPE[:OPTION=VALUE[,VALUE...]]...``: one layer for each combination of the values.
            ``+`` joins layers that act one after the other. A dict is the config of one layer.

    Raises:
        ValueError: If the text cannot be read, or nobody knows a layer of that name.

    Example:
        >>> [addition.label for addition in parse_additions('LSKA:kernel_size=7,11+ECA')]
        ['LSKA kernel_size=7 + ECA', 'LSKA kernel_size=11 + ECA']
    """
    if isinstance(text, Mapping):
        if 'type' not in text:
            raise ValueError(f"a layer is a dict with a 'type', got {dict(text)!r}")
        return [_addition([dict(text, type=scoped_type(text['type']))])]
    alternatives = [_parse_layers(part) for part in text.split('+')]
    return [_addition(layers) for layers in itertools.product(*alternatives)]


def _parse_layers(text: str) -> list[dict]:
    name, *options = text.strip().split(':')
    if not name:
        raise ValueError(f'a layer is written {LAYER_EXAMPLE}, got {text!r}')
    kind = scoped_type(name)
    choices = [_parse_option(option, text) for option in options]
    return [dict(type=kind, **dict(chosen)) for chosen in itertools.product(*choices)]


def _parse_option(option: str, text: str) -> list[tuple[str, Any]]:
    name, sign, values = option.partition('=')
    # A comma inside brackets belongs to a value.
    chosen = [value for value in re.split(r',(?![^(\[]*[)\]])', values) if value]
    if not (name.isidentifier() and sign and chosen):
        raise ValueError(f'a layer is written {LAYER_EXAMPLE}, got {option!r} in {text!r}')
    return [(name, _parse_value(value)) for value in chosen]


def _parse_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def scoped_type(name: Any) -> Any:
    """Name of a layer with its scope, so that configs of every library find it.

    Raises:
        ValueError: If no registry knows it.
    """
    if not isinstance(name, str):
        return name
    bare = name.removeprefix('mmlska.')
    if bare in MODELS.module_dict:
        return f'mmlska.{bare}'
    if find_model(name) is None:
        known = sorted(MODELS.module_dict)
        raise ValueError(
            f'{name!r} is no layer that mmlska or a registry knows{nearest(name, known)}; '
            f'mmlska itself has: {", ".join(known)}'
        )
    return name


def _addition(layers: Sequence[dict]) -> Addition:
    label = ' + '.join(map(layer_label, layers))
    if len(layers) == 1:
        return Addition(label, layers[0])
    return Addition(label, dict(type='mmlska.AttentionSequence', layers=list(layers)))


def layer_label(layer: Mapping) -> str:
    """Name of a layer and its options, in words.

    >>> layer_label(dict(type='mmlska.LSKA', kernel_size=7))
    'LSKA kernel_size=7'
    """
    kind = layer['type']
    name = kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
    options = [f'{key}={value}' for key, value in layer.items() if key != 'type']
    return ' '.join([name, *options])


def parse_place(text: str) -> Place:
    """The place that a word of the command line names.

    Args:
        text: ``neck`` (a layer on each level of the pyramid), ``attention`` (the attention of VAN
            is replaced), or a plugin position of the backbone with ``@`` and its stages.

    Raises:
        ValueError: If there is no such place.

    Example:
        >>> parse_place('after_conv3@2,3')
        Place(position='after_conv3', stages=(2, 3))
    """
    position, sign, stages = text.strip().partition('@')
    if position not in POSITIONS:
        raise ValueError(
            f'no place {text!r}{nearest(position, POSITIONS)}; a place is {ATTENTION!r}, {NECK!r}, '
            f'or a position with stages as in {PLACE_EXAMPLE}: {", ".join(RESNET_POSITIONS)} of a '
            f'ResNet, {", ".join(PLUGIN_POSITIONS)} of a {VAN.__name__}'
        )
    if not sign:
        return Place(position)
    if position in (NECK, ATTENTION):
        raise ValueError(f'{position!r} takes no stages, got {text!r}')
    if not re.fullmatch(r'[1-9](,[1-9])*', stages):
        raise ValueError(f'stages are written as in {PLACE_EXAMPLE}, the first is 1, got {text!r}')
    return Place(position, tuple(sorted({int(stage) for stage in stages.split(',')})))
