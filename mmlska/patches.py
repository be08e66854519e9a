"""Every change that this package makes to a foreign library, each with its reason.

Permanent ones are made by :func:`apply`, once ``mmlska.models`` is imported; the others last as
long as their context. ``PATCHES`` lists both.

What is *not* changed: mmcv's RoIAlign, rotated RoIAlign and modulated deformable convolution take
any map for contiguous and compute something else from one in channels_last, without a word; its
deformable convolution refuses one. The backbones choose that layout by themselves, so they hand out
contiguous maps, whatever runs behind them, and nothing has to be changed in mmcv. That costs
neither time nor memory that could be measured; docs/architecture.md has the figures.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from inspect import getdoc
from typing import Any, NamedTuple

from mmengine import logging as mmengine_logging
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.infer import BaseInferencer
from mmengine.registry import init_default_scope

from mmlska.checkpoint import register_loaders
from mmlska.checkpoint.own_models import SCHEME, own_models
from mmlska.shipped import nearest, shipped_configs


class Patch(NamedTuple):
    """A change to a foreign library.

    Attributes:
        make: Makes the change; its docstring gives the reason.
        library: The library.
        changed: What is changed in it.
        is_permanent: Whether :func:`apply` makes it; else ``make`` is a context.
    """

    make: Callable
    library: str
    changed: str
    is_permanent: bool

    @property
    def reason(self) -> str:
        """Why the change is made."""
        return getdoc(self.make).partition('\n\n')[2].partition('\n\nArgs:')[0]


def read_checkpoints_safely() -> None:
    """Let mmengine read local files and URLs by :mod:`mmlska.checkpoint`.

    mmengine's own readers fall back to running the code in a file that cannot be read safely, and
    know neither safetensors nor the names of other codebases.
    """
    register_loaders()


def find_shipped(name: str) -> tuple[Config, str | None] | None:
    """Config and weights of a model or config that comes with this package, by name.

    Returns:
        The weights are None for a config without any; all is None for a name of somebody else.
    """
    configs, models = shipped_configs(), own_models()
    if name in models:
        cfg = Config.fromfile(configs[models[name].config])
        cfg.merge_from_dict(models[name].options)
        return cfg, SCHEME + name
    return (Config.fromfile(configs[name]), None) if name in configs else None


def name_configs_to_inferencers() -> None:
    """Let the inferencers of mmdet and mmseg take our configs and models by name.

    They look a name up in one package of a closed list, demand that its index has weights of the
    model, and build in the scope of that package, where ours would find no detector or segmentor.
    """
    MODULE2PACKAGE.setdefault('mmlska', 'mmlska')
    look_up = BaseInferencer._load_model_from_metafile

    def load(self: BaseInferencer, model: str) -> tuple[Config, str | None]:
        ours = find_shipped(model.lower())
        if ours is not None:
            scope = ours[0].default_scope
            if self.scope not in ('mmlska', scope):
                raise ValueError(
                    f'{model} is a model of {scope}, which no inferencer of {self.scope} runs'
                )
            init_default_scope(scope)
            self.scope = scope
            return ours
        hint = nearest(model.lower(), [*own_models(), *shipped_configs()], 3)
        if self.scope == 'mmlska':
            raise ValueError(f'no model of mmlska is called {model!r}{hint}')
        try:
            return look_up(self, model)
        except ValueError as error:
            raise ValueError(f'{error}{hint}') from error

    BaseInferencer._load_model_from_metafile = load


def print_no_debug_messages() -> None:
    """Let mmengine keep messages of the level DEBUG that go to no logger to itself.

    Without a logger it prints whatever the level is, so that the first use of mmdet's or mmseg's
    data sets tells twice, amid what a tool prints, that OneDL is absent, which nothing here needs.
    """
    print_log = mmengine_logging.print_log

    @wraps(print_log)
    def print_but_debug(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level != logging.DEBUG:
            print_log(msg, logger, level)

    mmengine_logging.print_log = print_but_debug


@contextmanager
def evaluate_coco_by(evaluation: type) -> Iterator[None]:
    """Let mmdet's ``CocoMetric`` evaluate by another class inside this context.

    ``CocoMetric`` names pycocotools' class inside a long method. Without this, a metric that takes
    another one would have to repeat the method.

    Args:
        evaluation (type): Takes the place of ``COCOeval``.
    """
    from mmdet.evaluation.metrics import coco_metric

    names = [name for name in ('COCOeval', 'COCOevalMP') if hasattr(coco_metric, name)]
    kept = {name: getattr(coco_metric, name) for name in names}
    try:
        for name in names:
            setattr(coco_metric, name, evaluation)
        yield
    finally:
        for name, value in kept.items():
            setattr(coco_metric, name, value)


PATCHES = (
    Patch(read_checkpoints_safely, 'mmengine', 'schemes of CheckpointLoader', True),
    Patch(
        name_configs_to_inferencers,
        'mmengine',
        'BaseInferencer._load_model_from_metafile, MODULE2PACKAGE',
        True,
    ),
    Patch(print_no_debug_messages, 'mmengine', 'mmengine.logging.print_log', True),
    Patch(evaluate_coco_by, 'mmdet', 'COCOeval, COCOevalMP in coco_metric', False),
)


@cache
def apply() -> None:
    """Make the permanent changes. Calling it again changes nothing."""
    for patch in PATCHES:
        if patch.is_permanent:
            patch.make()
