"""Finding a config, reading it, and overriding its settings with checks."""

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmlska.shipped import nearest, shipped_configs

# What mmengine and the scripts read from a config beside the arguments of the runner.
OTHER_KEYS = (
    'compile',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)


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
    if options:
        check_options(cfg, options)
        cfg.merge_from_dict(options)
    return cfg


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
    read = {*inspect.signature(Runner).parameters, *OTHER_KEYS} - {'cfg'}
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
    if isinstance(old, (int, float)) and isinstance(new, str):
        kind = 'true or false' if isinstance(old, bool) else 'a number'
        raise TypeError(f'--cfg-options {key} takes {kind} (now {old}), got {new!r}')
    if isinstance(old, dict) and old and not isinstance(new, dict) and new is not None:
        raise TypeError(
            f'--cfg-options {key} is a group of settings ({", ".join(map(str, old))}), not one '
            f'value; got {new!r}, name the setting as {key}.NAME=VALUE'
        )
