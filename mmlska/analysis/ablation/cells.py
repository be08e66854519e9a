"""The cells of an ablation: one config each, by inheritance, that any script trains."""

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlska.engine.config import load_config, type_name

from .config_text import config_text
from .notation import Addition, Place
from .placing import PLAIN, place_layer
from .spec import Spec

BASE = 'base'


@dataclass(frozen=True)
class Cell:
    """One variant of the base.

    Attributes:
        name: Name of its config and of the folder of its runs.
        label: What it is, in words.
        text: Its config; empty if it has none.
        failure: Why there can be no config; empty if there is one.
    """

    name: str
    label: str
    text: str
    failure: str = ''


def make_cells(spec: Spec) -> list[Cell]:
    """The base, and a cell for each layer at each place.

    What the base has no place for becomes a cell with the reason.

    Raises:
        ValueError: If two cells would bear one name.
    """
    cfg = load_config(spec.base, dict(spec.options))
    cells = [Cell(BASE, BASE, base_text(spec, cfg))]
    for place, addition, start in itertools.product(spec.places, spec.additions, spec.starts):
        cells.append(make_cell(cfg, addition, place, spec, start))
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'two cells are named {twice[0]!r}: leave one of them out')
    return cells


def make_cell(cfg: Config, addition: Addition, place: Place, spec: Spec, start: str | None) -> Cell:
    """The cell with a layer at a place."""
    name = f'{slug(addition.label)}_{slug(str(place))}'
    label = f'{addition.label} at {place}' if len(spec.places) > 1 else addition.label
    comment = f'{addition.label} at {place}, in an ablation.'
    if start == PLAIN:
        name, label = f'{name}_{PLAIN}', f'{label}, {PLAIN}'
    try:
        settings = place_layer(cfg, addition.layer, place, start)
    except ValueError as error:
        return Cell(name, label, '', str(error))
    return Cell(name, label, config_text(comment, f'./{BASE}.py', settings))


def slug(label: str) -> str:
    """A name for files, without dots, which mmengine does not take in names of configs.

    >>> slug('LSKA kernel_size=7'), slug('after_conv3@2,3')
    ('lska-kernel_size7', 'after_conv3-2-3')
    """
    label = re.sub(r'(?<=\d)\.(?=\d)', 'p', label).replace('=', '')
    return re.sub(r'[^A-Za-z0-9_]+', '-', label).strip('-').lower()


def base_text(spec: Spec, cfg: Config) -> str:
    """The config that all cells inherit from: the user's, and what holds for all of them."""
    settings = overrides(cfg, spec.options)
    hooks = safe_saving(cfg) | logging_by_iteration(cfg)
    if spec.weights is not None:
        hooks['start_evaluation'] = dict(type='mmlska.StartEvaluationHook')
    if hooks:
        own = settings.get('default_hooks', {})
        settings['default_hooks'] = own | {
            name: own.get(name, {}) | hook for name, hook in hooks.items()
        }
    if spec.weights is not None:
        settings['load_from'] = os.path.abspath(spec.weights)
        backbone = cfg.model.get('backbone') or {}
        if backbone.get('init_cfg'):
            # All of it is overwritten, so that nothing need be downloaded.
            settings.setdefault('model', {}).setdefault('backbone', {})['init_cfg'] = None
    folder = config_folder(spec)
    is_near = spec.base.is_relative_to(Path.cwd()) and folder.resolve().is_relative_to(Path.cwd())
    base = os.path.relpath(spec.base, folder.resolve()) if is_near else str(spec.base)
    return config_text('Base of all cells of an ablation.', base, settings)


def safe_saving(cfg: Config) -> dict[str, dict]:
    """Hooks by which an interrupted run loses nothing, where the base has mmengine's own."""
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not checkpoint or type_name(checkpoint) != 'CheckpointHook':
        return {}
    return dict(
        checkpoint=dict(type='mmlska.SafeCheckpointHook'),
        interruption=dict(type='mmlska.InterruptionHook'),
    )


def logging_by_iteration(cfg: Config) -> dict[str, dict]:
    """A logger that tells evaluations apart, where the base would log all at epoch 0."""
    logger = (cfg.get('default_hooks') or {}).get('logger')
    by_iteration = 'max_iters' in (cfg.get('train_cfg') or {})
    if not logger or not by_iteration or not logger.get('log_metric_by_epoch', True):
        return {}
    return dict(logger=dict(log_metric_by_epoch=False))


def overrides(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested variables of a config that stand for overrides by dotted key.

    A key that goes through a list stands for the whole list, as a config cannot inherit an element.

    Args:
        cfg: The config with the overrides in it.
        options: The overrides.
    """
    nested: dict[str, Any] = {}
    for dotted in options:
        path, value = [], cfg
        for part in dotted.split('.'):
            if isinstance(value, (list, tuple)):
                break
            path.append(part)
            value = value[part]
        place = nested
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = plain(value)
    return nested


def plain(value: Any) -> Any:
    """Dicts and lists of mmengine as Python's own."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def config_folder(spec: Spec) -> Path:
    """Where the configs of the cells lie."""
    return spec.work_dir / 'configs'


def config_path(spec: Spec, cell: Cell) -> Path:
    """Config of a cell."""
    return config_folder(spec) / f'{cell.name}.py'


def write_configs(spec: Spec, cells: list[Cell]) -> None:
    """Write the config of every cell that has one."""
    config_folder(spec).mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if cell.text:
            config_path(spec, cell).write_text(cell.text, encoding='utf-8')
