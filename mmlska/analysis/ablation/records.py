"""What a training leaves in its work dir: losses, and the figures of its evaluations."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

# What evaluations of mmdet, mmseg and mmpretrain log, the figures that papers report first.
USUAL_METRICS = (
    *('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1'),
    *('coco_panoptic/PQ', 'pascal_voc/mAP', 'lvis/bbox_AP'),
)
# Logged beside the figures, and no figures.
NO_FIGURES = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory', 'lr', 'base_lr')


class NoFiguresError(RuntimeError):
    """A training whose work dir holds no figures of an evaluation."""


def scalars(work_dir: Path) -> list[dict]:
    """Records of all runs in a work dir, in the order of their steps; evaluations come last."""
    training, evaluation = records(work_dir)
    return [*training, *(record for record in evaluation if figures_of(record))]


def records(work_dir: Path) -> tuple[list[dict], list[dict]]:
    """Records of training and of evaluation, in the order of their steps; one of each step.

    A run that was interrupted and resumed logs some steps twice; the last record is the one that
    went on.
    """
    training: dict[int, dict] = {}
    evaluation: dict[int, dict] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            if 'loss' in record:
                training[record.get('step', 0)] = record
            # An evaluation without figures has its time: the detector has found nothing at all.
            elif 'time' in record or figures_of(record):
                evaluation[record.get('step', 0)] = record
    return [training[i] for i in sorted(training)], [evaluation[i] for i in sorted(evaluation)]


def figures_of(record: dict) -> dict[str, float]:
    """The figures of a record of an evaluation."""
    return {
        key: value
        for key, value in record.items()
        if key not in NO_FIGURES and isinstance(value, (int, float))
    }


def last_figures(work_dir: Path) -> dict[str, float]:
    """Figures of the last evaluation of a training.

    Raises:
        NoFiguresError: If there are none, or one is no finite number.
    """
    found = [figures_of(record) for record in records(work_dir)[1]]
    if not found or not found[-1]:
        raise NoFiguresError(
            'the training logged no figures of its last evaluation: it needs val_evaluator, a '
            'val_interval that it reaches, and LocalVisBackend; a detector that finds nothing at '
            'all logs none'
        )
    # Figures of single classes may be undefined.
    broken = [name for name in USUAL_METRICS if not math.isfinite(found[-1].get(name, 0.0))]
    if broken:
        raise NoFiguresError(f'the last evaluation gave {broken[0]}={found[-1][broken[0]]}')
    return found[-1]


def curve(work_dir: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a logged quantity, such as ``'loss'``."""
    return [(record.get('step', 0), record[name]) for record in scalars(work_dir) if name in record]


def evaluated(work_dir: Path, name: str) -> list[float]:
    """Values of a figure in the evaluations of a training, in their order.

    mmdet logs no figures for a detector that finds nothing at all: 0.
    """
    return [record.get(name, 0.0) for record in records(work_dir)[1]]


def choose_metrics(found: Sequence[dict[str, float]], wanted: Sequence[str]) -> list[str]:
    """Names of the figures to compare: those that were asked for, or the usual ones.

    Args:
        found: Figures of each finished run.
        wanted: Names; none to choose.

    Raises:
        ValueError: If no run has a figure of a wanted name.
    """
    names = list(dict.fromkeys(name for figures in found for name in figures))
    for name in wanted:
        if names and name not in names:
            raise ValueError(f'no run logged {name!r}; there are {", ".join(names)}')
    usual = [name for name in USUAL_METRICS if name in names]
    return list(wanted) or usual or names[:1]
