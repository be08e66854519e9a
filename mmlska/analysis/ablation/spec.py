"""What an ablation compares: the base, the layers, the places, the seeds."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlska.engine.config import find_config
from mmlska.engine.launch import check_checkpoint
from mmlska.shipped import nearest

from .notation import Addition, Place, parse_additions, parse_place
from .placing import IDENTITY, STARTS

KEYS = ('base', 'add', 'where', 'seeds', 'weights', 'start', 'metric', 'cfg_options', 'work_dir')
# Installed libraries that ship their configs beside their code.
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


@dataclass(frozen=True)
class Spec:
    """An ablation.

    Attributes:
        base: Path of the config that all cells inherit from.
        additions: Layers that are compared.
        places: Where each of them goes; every layer at every place is one cell.
        seeds: Seeds that every cell is trained with.
        work_dir: Where configs, runs and reports go.
        weights: Checkpoint of the base that every cell starts from, None for none.
        starts: How layers enter the base with these weights, a cell for each: of
            :data:`.placing.STARTS`. None stands for training without weights.
        metrics: Names of the figures to compare, as the evaluation logs them; none to choose the
            usual ones of the task.
        options: Overrides of the base by dotted key, for all cells.
    """

    base: Path
    additions: tuple[Addition, ...]
    places: tuple[Place, ...]
    seeds: tuple[int, ...]
    work_dir: Path
    weights: str | None = None
    starts: tuple[str | None, ...] = (None,)
    metrics: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def make_spec(settings: Mapping[str, Any]) -> Spec:
    """Check what a command line or a file asks for.

    Args:
        settings: ``base``, ``add`` and ``where``, and of ``seeds``, ``weights``, ``start``,
            ``metric``, ``cfg_options`` and ``work_dir`` what is not to be chosen.

    Raises:
        FileNotFoundError: If the base or the weights are missing.
        ValueError: If a setting is missing or wrong.
    """
    for key in settings:
        if key not in KEYS:
            raise ValueError(f'an ablation has no {key!r}{nearest(key, KEYS)}: {", ".join(KEYS)}')
    for key in ('base', 'add', 'where'):
        if not settings.get(key):
            raise ValueError(f'an ablation needs {key!r}; it takes {", ".join(KEYS)}')
    base, weights = find_base(settings['base']), settings.get('weights')
    check_checkpoint(weights, 'weights')
    additions = [found for word in words(settings['add']) for found in parse_additions(word)]
    return Spec(
        base=base,
        additions=tuple(additions),
        places=tuple(parse_place(word) for word in words(settings['where'])),
        seeds=parse_seeds(settings.get('seeds', 3)),
        work_dir=Path(settings.get('work_dir') or f'work_dirs/ablation_{base.stem}'),
        weights=weights,
        starts=parse_starts(settings.get('start'), weights),
        metrics=tuple(words(settings.get('metric') or ())),
        options=dict(settings.get('cfg_options') or {}),
    )


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """Settings of an ablation from a YAML or Python file; None if the file is no such file."""
    path = Path(path)
    if not path.is_file():
        return None
    content = Config.fromfile(path)
    is_ablation = path.suffix in ('.yaml', '.yml') or ('add' in content and 'model' not in content)
    return content.to_dict() if is_ablation else None


def find_base(name: str | Path) -> Path:
    """A config by its path, its bare name if we ship it, or its library: ``'mmdet::FOLDER/NAME'``.

    Raises:
        FileNotFoundError: If there is none.
    """
    library, sign, rest = str(name).partition('::')
    if not sign:
        return find_config(name).resolve()
    if library not in LIBRARIES or (found := importlib.util.find_spec(library)) is None:
        raise FileNotFoundError(
            f'{name!r}: no such library is installed; its configs are named LIBRARY::FOLDER/NAME, '
            f'with one of {", ".join(LIBRARIES)}'
        )
    folder = Path(found.submodule_search_locations[0]) / '.mim' / 'configs'
    path = folder / f'{rest.removesuffix(".py")}.py'
    if not path.is_file():
        paths = {f.relative_to(folder).as_posix().removesuffix('.py') for f in folder.rglob('*.py')}
        raise FileNotFoundError(f'{library} has no config {rest!r}{nearest(rest, paths)}')
    return path


def words(value: Any) -> list[Any]:
    """The members of a list; a lone word as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def parse_starts(starts: str | Sequence[str] | None, weights: str | None) -> tuple[str | None, ...]:
    """How layers enter the base; the identity where nothing is said.

    Raises:
        ValueError: If there are no weights to enter, or a way is unknown or occurs twice.
    """
    if weights is None:
        if starts:
            raise ValueError("'start' says how layers enter a base with weights: give 'weights'")
        return (None,)
    chosen = tuple(words(starts or IDENTITY))
    if not set(chosen) <= set(STARTS) or len(set(chosen)) < len(chosen):
        raise ValueError(f"'start' is of {', '.join(STARTS)}, each once, got {starts!r}")
    return chosen


def parse_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds from how many there are, or from a list.

    Raises:
        ValueError: If there is none, one is no whole number from 0 on, or one occurs twice.

    Example:
        >>> parse_seeds(3), parse_seeds([4, 8])
        ((0, 1, 2), (4, 8))
    """
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    chosen = tuple(chosen)
    is_whole = all(isinstance(seed, int) and seed >= 0 for seed in chosen)
    if not chosen or not is_whole or len(set(chosen)) < len(chosen):
        raise ValueError(
            f'seeds is how many there are, at least 1, or a list of different ones from 0 on, '
            f'got {seeds!r}'
        )
    return chosen
