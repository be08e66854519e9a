"""Trained models that a page can offer: of the package, of the command line, of make demo."""

import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mmengine.registry import MODELS

from mmlska.analysis.before_after import BeforeAfter
from mmlska.checkpoint.own_models import SCHEME, own_models
from mmlska.engine.config import load_config

WORK_DIRS = Path('work_dirs')
NOTHING = (
    'there is no trained model to try yet: run `make demo TASK=segmentation` (about four minutes), '
    'or name one of yours by --model CONFIG CHECKPOINT'
)


class NoModelError(ValueError):
    """There is nothing that could be tried."""


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be tried.

    Attributes:
        family: What it is, but for its kernel size.
        kernel_size: Kernel size of the attention of its backbone; None if it has none.
        config: Path or name of its config.
        checkpoint: Its weights.
        options: Overrides of the config by dotted key.
    """

    family: str
    kernel_size: int | None
    config: str
    checkpoint: str
    options: dict = field(default_factory=dict, compare=False)


def list_models(named: Iterable[tuple[str, str]] = ()) -> list[TrainedModel]:
    """Every model that can be tried, those that the user names first.

    Args:
        named: Pairs of a config and a checkpoint.

    Raises:
        FileNotFoundError: If a config that is named does not exist.
        NoModelError: If there is none.
    """
    models = [*named_models(named), *zoo_models(), *demo_models()]
    if not models:
        raise NoModelError(NOTHING)
    return models


def named_models(pairs: Iterable[tuple[str, str]]) -> list[TrainedModel]:
    """Models of the command line; the checkpoint tells two of the same config apart."""
    pairs = list(pairs)
    configs = [config for config, _ in pairs]
    models = []
    for config, checkpoint in pairs:
        family = Path(config).stem
        if configs.count(config) > 1:
            family += f', {Path(checkpoint).parent.name}/{Path(checkpoint).stem}'
        size = kernel_size_of(load_config(config).model)
        models.append(TrainedModel(family, size, config, checkpoint))
    return models


def zoo_models() -> list[TrainedModel]:
    """Models whose weights come with the package, the family of most kernel sizes first."""
    models = []
    for name, own in own_models().items():
        size = kernel_size_of(load_config(own.config, own.options).model)
        family = name.replace(f'-k{size}-', '-')
        models.append(TrainedModel(family, size, own.config, f'{SCHEME}{name}', own.options))
    sizes = Counter(model.family for model in models)
    return sorted(models, key=lambda own: (-sizes[own.family], own.family, own.kernel_size or 0))


def demo_models(work_dirs: Path = WORK_DIRS) -> list[TrainedModel]:
    """What finished runs of make demo have left."""
    models = []
    for mark in sorted(work_dirs.glob('demo_*/train/last_checkpoint')):
        folder, checkpoint = mark.parents[1], mark.read_text(encoding='locale').strip()
        configs = sorted(folder.glob('*.py'))
        if configs and Path(checkpoint).is_file():
            config = str(configs[0])
            size = kernel_size_of(load_config(config).model)
            models.append(TrainedModel(f'make demo: {configs[0].stem}', size, config, checkpoint))
    return models


def kernel_size_of(model: dict) -> int | None:
    """Kernel size of the attention of a backbone, from the settings of its model."""
    attention = (model.get('backbone') or {}).get('attention')
    if not attention:
        return None
    if 'kernel_size' in attention:
        return attention['kernel_size']
    layer = MODELS.get(f'mmlska.{attention["type"].removeprefix("mmlska.")}')
    size = inspect.signature(layer).parameters.get('kernel_size')
    return size and size.default


@lru_cache(maxsize=4)
def load(model: TrainedModel, device: str | None = None) -> BeforeAfter:
    """A model and its untrained twin; the last few are kept.

    Raises:
        FileNotFoundError: If its config or checkpoint is missing.
        ValueError: If the two do not fit together.
    """
    return BeforeAfter(model.config, model.checkpoint, model.options, device)
