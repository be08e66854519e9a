"""Every change that this package makes to a foreign library, each with its reason.

Permanent ones are made by :func:`apply`, once ``mmlska.models`` is imported; the others last as
long as their context. ``PATCHES`` lists both.

What is *not* changed: mmcv's RoIAlign, rotated RoIAlign and modulated deformable convolution take
any map for contiguous and compute something else from one in channels_last, without a word; its
deformable convolution refuses one. The backbones choose that layout by themselves, so they hand out
contiguous maps, whatever runs behind them, and nothing has to be changed in mmcv. It costs nothing
that can be measured. A training step of Mask R-CNN with VAN-LSKA-tiny on one image of 256x256 takes
1.01 times as long as with copies of every stage's map, and 1.02 times as long where the backbone
copies nothing and RoIAlign its own input; peak memory of the process is 1083, 1115 and 1086 MiB.
VAN-LSKA-tiny alone, evaluated on 512x512: 0.95 and 0.99. (Medians of ratios of 15 steps and 22
evaluations in turns, one thread of a shared 2-core AMD EPYC, torch 2.13.0, 2026-11-25.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import getdoc
from typing import NamedTuple

from mmlska.checkpoint import register_loaders


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
    Patch(evaluate_coco_by, 'mmdet', 'COCOeval, COCOevalMP in coco_metric', False),
)


def apply() -> None:
    """Make the permanent changes. Calling it again changes nothing."""
    for patch in PATCHES:
        if patch.is_permanent:
            patch.make()
