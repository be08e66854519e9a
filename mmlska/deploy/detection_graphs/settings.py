"""What a graph takes from the configuration of a detector, and what it cannot take."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from .candidates import Suppression

# An image of any size has fewer candidates.
NO_LIMIT = 2**31 - 1
# Keys of mmcv's batched_nms that a graph heeds; split_thr only saves memory.
NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


class Limits(NamedTuple):
    """Limits of a step of a detector.

    Args:
        score_threshold (float): A candidate needs a higher score.
        candidates (int): How many of a level compete at most (mmdet's nms_pre).
        smallest_side (float): A box needs larger sides, in pixels (min_bbox_size).
        suppression (Suppression): How they suppress each other.
    """

    score_threshold: float
    candidates: int
    smallest_side: float
    suppression: Suppression


def refuse(part: nn.Module, reason: str) -> None:
    """Raise the error that tells why there is no graph of a detector."""
    raise TypeError(f'no detection graph of {type(part).__name__}: {reason}')


def require_methods(part: nn.Module, base: type, names: str) -> None:
    """Raise an error unless these methods of a part are those of a class of mmdet."""
    if not isinstance(part, base):
        refuse(part, f'it is no {base.__name__}')
    for name in names.split():
        if getattr(type(part), name) is not getattr(base, name):
            refuse(part, f'its {name} is not that of {base.__name__}')


def limits_of(
    part: nn.Module,
    config: Mapping[str, Any] | None,
    score_threshold: float | None = None,
    most: int | None = None,
) -> Limits:
    """The limits of a step.

    Args:
        part (nn.Module): Head that the step belongs to, for errors.
        config (Mapping[str, Any], optional): Its ``test_cfg``.
        score_threshold (float, optional): Stands in for ``score_thr``.
        most (int, optional): Stands in for ``max_per_img``; a config that has none limits nothing.

    Returns:
        Limits: The limits.
    """
    if config is None:
        refuse(part, 'it was built without test_cfg, which holds its thresholds')
    if score_threshold is None:
        score_threshold = config.get('score_thr', -1.0)
    limit = config.get('max_per_img', NO_LIMIT) if most is None else most
    return Limits(
        float(score_threshold),
        config.get('nms_pre', NO_LIMIT),
        config.get('min_bbox_size', -1),
        _suppression(part, config.get('nms'), limit),
    )


def _suppression(part: nn.Module, nms: Mapping[str, Any] | None, limit: int) -> Suppression:
    if not nms or nms.get('type', 'nms') != 'nms':
        refuse(part, f'its test_cfg.nms is {nms}; a graph knows the type nms, and no other')
    if 'iou_threshold' not in nms or not set(nms) <= NMS_KEYS:
        refuse(
            part, f'its test_cfg.nms is {nms}; a graph needs iou_threshold, and knows {NMS_KEYS}'
        )
    return Suppression(nms['iou_threshold'], nms.get('class_agnostic', False), limit)


def has_own_activation(part: nn.Module) -> bool:
    """Whether the loss of a head turns its outputs into scores by a function of its own."""
    return bool(getattr(getattr(part, 'loss_cls', None), 'custom_cls_channels', False))


def check_overrides(score_threshold: float | None, max_detections: int | None) -> None:
    """Raise an error if what stands in for the configuration is no threshold or no number."""
    if score_threshold is not None and not 0 <= score_threshold < 1:
        raise ValueError(f'score_threshold is {score_threshold}; allowed is 0 to below 1, or None')
    whole = isinstance(max_detections, int) and not isinstance(max_detections, bool)
    if max_detections is not None and not (whole and max_detections > 0):
        raise ValueError(f'max_detections is {max_detections}; allowed is 1 or more, or None')
