"""Finding a config, reading it, and overriding its settings with checks."""

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner, Runner

from mmlska.shipped import nearest, shipped_configs

# What mmengine and the scripts read from a config beside the arguments of the runner.
OTHER_KEYS = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'init_weights_for_test_or_val',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)
# Settings that mmengine takes as a number or a word ('dynamic'), as a group or true and false.
EITHER_KIND = ('loss_scale', 'compile')
# What scripts take a config for: the library whose kind of model it builds.
DETECTION, SEGMENTATION, CLASSIFICATION = TASKS = 'mmdet', 'mmseg', 'mmpretrain'


def find_config(config: str | Path) -> Path:
    """Resolve a path, or the bare name of a shipped config with or without ``.py``.

    Raises:
        FileNotFoundError: If there is neither; names the shipped config most like it.
    """
    path = Path(config)
    if path.is_file():
        return path
    shipped = shipped_configs()
    name = str(config).removesuffix('.py')
    if name in shipped:
        return shipped[name]
    raise FileNotFoundError(
        f'no config file {str(config)!r} (looked in {Path.cwd()}), and no shipped config of that '
        f'name{nearest(path.stem, shipped)} (`python -m mmlska configs` lists them)'
    )


def load_config(config: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config file and override settings of it.

    Args:
        config: Path, or name of a shipped config.
        options: New values by dotted key, as ``--cfg-options`` gives them.

    Raises:
        FileNotFoundError: If there is no such config.
        ImportError: If the library that the config is for is not installed.
        KeyError: If an option names an element that a list does not have.
        TypeError: If an option has a value of another kind than the one it replaces.
        ValueError: If an option sets something that nothing would read.
    """
    cfg = Config.fromfile(find_config(config))
    check_scope(cfg)
    if not cfg.get('default_scope') and (task := task_of(cfg)):
        # A pure-Python config names classes and needs no scope; what the scripts add to it does.
        cfg.default_scope = task
    if options:
        check_options(cfg, options)
        cfg.merge_from_dict(options)
    return cfg


def task_of(cfg: Config) -> str | None:
    """The library whose kind of model a config builds, by its scope or else by the model's class.

    Returns:
        ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``; for a model of another kind the config's own
        scope, None if it has none.
    """
    scope = cfg.get('default_scope')
    kind = (cfg.get('model') or {}).get('type')
    if scope in TASKS or kind is None:
        return scope
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    roots = [base.__module__.split('.')[0] for base in getattr(kind, '__mro__', ())]
    return next((root for root in roots if root in TASKS), scope)


def type_name(settings: dict) -> str:
    """Bare name of what a group of settings builds, which may be a name, a scoped one or a class.

    >>> type_name(dict(type='mmdet.Resize')), type_name(dict(type=dict))
    ('Resize', 'dict')
    """
    kind = settings.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def check_scope(cfg: Config) -> None:
    """Check that the library of the config's default scope is installed.

    Raises:
        ImportError: If it is not.
    """
    scope = cfg.get('default_scope')
    if scope and importlib.util.find_spec(scope) is None:
        raise ImportError(
            f"the config has default_scope='{scope}', but {scope} is not installed; "
            '`python -m mmlska check` tells what is missing and how to get it'
        )


def check_options(cfg: Config, options: dict[str, Any]) -> None:
    """Check overrides that mmengine would take in silence.

    Raises:
        TypeError: If text would replace a number, or a single value a group of settings.
        ValueError: If the first part of a key is neither in the config nor known to mmengine.
    """
    runners = (Runner, FlexibleRunner)
    read = {name for runner in runners for name in inspect.signature(runner).parameters}
    read = {*read, *OTHER_KEYS} - {'cfg'}
    for key, value in options.items():
        first = key.split('.')[0]
        if first not in cfg and first not in read:
            raise ValueError(
                f'--cfg-options {key}: the config has no {first!r}{nearest(first, {*cfg, *read})}'
            )
        if first not in read:
            print_log(
                f'--cfg-options {key}: {first} is a variable of the config file; what the file '
                'built from it keeps its value and has to be set by its own key',
                logger='current',
                level=logging.WARNING,
            )
        check_kind(key, current_value(cfg, key), value)


def current_value(cfg: Config, key: str) -> Any:
    """Value of a dotted key, None if the config has none."""
    value: Any = cfg
    for part in key.split('.'):
        if isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, (dict, Config)):
            value = value.get(part)
        else:
            return None
    return value


def check_kind(key: str, old: Any, new: Any) -> None:
    """Check that ``new`` may stand for ``old``.

    Raises:
        TypeError: If text would replace a number, or a single value a group of settings.
    """
    if key.split('.')[-1] in EITHER_KIND:
        return
    if isinstance(old, (int, float)) and isinstance(new, str):
        kind = 'true or false' if isinstance(old, bool) else 'a number'
        raise TypeError(f'--cfg-options {key} takes {kind} (now {old}), got {new!r}')
    if isinstance(old, dict) and old and not isinstance(new, dict) and new is not None:
        raise TypeError(
            f'--cfg-options {key} is a group of settings ({", ".join(map(str, old))}), not one '
            f'value; got {new!r}, name the setting as {key}.NAME=VALUE'
        )
