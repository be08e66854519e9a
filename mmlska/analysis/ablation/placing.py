"""What a config changes to have a layer at a place."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmlska.analysis.complexity import build_for_counting, image_channels, meta_input, padded_shape
from mmlska.engine.config import SEGMENTATION, task_of, type_name
from mmlska.models import VAN

from .config_text import Expression
from .notation import ATTENTION, NECK, Place

# How a layer enters a base that starts from weights: as the identity, or with its own start.
STARTS = IDENTITY, PLAIN = ('identity', 'plain')
# Pyramids are looked at on an image of this side, in pixels; every stride divides it.
SIDE = 256


def started_as_identity(layer: Mapping) -> dict:
    """The layer inside an :class:`mmlska.IdentityStart`, so that it changes nothing at first."""
    return dict(type='mmlska.IdentityStart', attention=dict(layer))


def place_layer(
    cfg: Config, layer: Mapping, place: Place, start: str | None = None
) -> dict[str, Any]:
    """Variables of a config that inherits from the base and has a layer at a place.

    Args:
        cfg: The base.
        layer: Config of the layer.
        place: Where it goes.
        start: How the layer enters, if the cell starts from the weights of the base: one of
            :data:`STARTS`. The factors of an identity are not decayed. None without weights.

    Raises:
        ValueError: If the base has no such place.
    """
    if place.position == ATTENTION:
        if start is not None:
            raise ValueError(
                "the place 'attention' replaces what the weights are of, so that no cell could "
                'start from them; add layers at another place, or leave the weights out'
            )
        return dict(model=dict(backbone=dict(attention=replaced_attention(cfg, layer))))
    layer = started_as_identity(layer) if start == IDENTITY else dict(layer)
    if place.position == NECK:
        return neck_settings(cfg, layer, start)
    settings = dict(model=dict(backbone=dict(plugins=plugin_entries(cfg, layer, place))))
    return settings | (undecayed('identity_start.g') if start == IDENTITY else {})


def replaced_attention(cfg: Config, layer: Mapping) -> dict:
    """The attention of a VAN, in the place of the base's own.

    Raises:
        ValueError: If the backbone is another one.
    """
    backbone = cfg.model.get('backbone') or {}
    if type_name(backbone) != VAN.__name__:
        raise ValueError(
            f"the place 'attention' is that of a mmlska.VAN; the backbone of the base is "
            f'{type_name(backbone) or "missing"}'
        )
    replacing = dict(_delete_=True) if 'attention' in backbone else {}
    return {**replacing, **layer}


def plugin_entries(cfg: Config, layer: Mapping, place: Place) -> Any:
    """Plugins of the backbone: those of the base, and the layer.

    MMSegmentation's ResNet runs only the last plugin at one position. Where the base has one at
    this position already, both go into an AttentionSequence.

    Raises:
        ValueError: If the place has a stage that the backbone has not.
    """
    backbone = cfg.model.get('backbone') or {}
    entry = dict(cfg=dict(layer), position=place.position)
    number = number_of_stages(backbone)
    if place.stages is not None:
        if max(place.stages) > number:
            raise ValueError(f'{place}: the backbone of the base has {number} stages')
        entry['stages'] = tuple(i + 1 in place.stages for i in range(number))
    own = backbone.get('plugins') or []
    runs_the_last_only = task_of(cfg) == SEGMENTATION and type_name(backbone).startswith('ResNet')
    if runs_the_last_only and any(plugin['position'] == place.position for plugin in own):
        return merged_plugins(own, entry, number)
    return [Expression('*_base_.model.backbone.plugins'), entry] if own else [entry]


def number_of_stages(backbone: Mapping) -> int:
    """Stages of a backbone by its config."""
    arch = backbone.get('arch')
    return len(arch['depths']) if isinstance(arch, Mapping) else backbone.get('num_stages', 4)


def merged_plugins(own: list[Mapping], entry: dict, number: int) -> list[dict]:
    """Plugins of which no two act at one position of one stage."""
    everywhere = (True,) * number
    wanted, merged, sequences = entry.get('stages', everywhere), [], []
    rest = list(wanted)
    for plugin in copy.deepcopy([dict(plugin) for plugin in own]):
        stages = plugin.get('stages', everywhere)
        shared = tuple(a and b for a, b in zip(stages, wanted, strict=True))
        if plugin['position'] != entry['position'] or not any(shared):
            merged.append(plugin)
            continue
        both = dict(type='mmlska.AttentionSequence', layers=[plugin['cfg'], entry['cfg']])
        sequences.append(dict(cfg=both, position=entry['position'], stages=shared))
        kept = tuple(a and not b for a, b in zip(stages, shared, strict=True))
        rest = [a and not b for a, b in zip(rest, shared, strict=True)]
        merged += [plugin | dict(stages=kept)] if any(kept) else []
    return [*merged, *sequences, *([entry | dict(stages=tuple(rest))] if any(rest) else [])]


def neck_settings(cfg: Config, layer: Mapping, start: str | None) -> dict[str, Any]:
    """A layer on each level of the pyramid, as one more neck."""
    channels = pyramid_channels(cfg)
    same = len(set(channels)) == 1
    levels = dict(
        type='mmlska.PyramidAttention',
        attention=dict(layer),
        in_channels=channels[0] if same else channels,
        num_outs=len(channels),
    )
    own = cfg.model.get('neck')
    base = Expression('_base_.model.neck')
    if not own:
        model = dict(neck=levels)
    elif isinstance(own, Mapping):
        model = dict(neck=[base, levels])
    else:
        model = dict(neck=[Expression('*_base_.model.neck'), levels])
    settings: dict[str, Any] = dict(model=model)
    if start == IDENTITY:
        prefix = f'neck.{len(model["neck"]) - 1}' if own else 'neck'
        prefix = f'neck.{len(own)}' if isinstance(own, (list, tuple)) else prefix
        settings |= undecayed(*(f'{prefix}.levels.{i}.g' for i in range(len(channels))))
    if start is not None:
        settings |= dict(default_hooks=dict(added_neck=dict(type='mmlska.AddedNeckHook')))
    return settings


def undecayed(*names: str) -> dict[str, Any]:
    """Settings that spare parameters the weight decay, which would pull them to the start."""
    keys = {name: dict(decay_mult=0.0) for name in names}
    return dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=keys)))


def pyramid_channels(cfg: Config) -> list[int]:
    """Channels of each map that backbone and neck of a config give to the heads.

    Raises:
        ValueError: If they give something else than maps.
    """
    model = build_for_counting(cfg)
    maps = model.backbone(meta_input(1, image_channels(model), *padded_shape(model, (SIDE, SIDE))))
    if getattr(model, 'neck', None) is not None:
        maps = model.neck(maps)
    if not isinstance(maps, (tuple, list)) or any(getattr(m, 'ndim', 0) != 4 for m in maps):
        raise ValueError(
            f"the place 'neck' needs a pyramid of maps; a {type(model).__name__} has none"
        )
    return [level.shape[1] for level in maps]
