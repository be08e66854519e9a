"""Heads that predict at every place of a pyramid: anchors, points, YOLOX, and an RPN."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .candidates import (
    Candidates,
    above,
    clip,
    decode_deltas,
    decode_distances,
    pick,
    rows_of,
    without_small,
)
from .operators import NO_CANDIDATE
from .settings import Limits, has_own_activation, refuse, require_methods


def check_dense_head(head: nn.Module) -> None:
    """Raise an error unless a head predicts as mmdet's ``BaseDenseHead`` does."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    names = 'predict predict_by_feat _predict_by_feat_single _bbox_post_process'
    require_methods(head, BaseDenseHead, names)
    _check_outputs(head)


def check_rpn_head(head: nn.Module) -> None:
    """Raise an error unless a head proposes regions as mmdet's ``RPNHead`` does."""
    from mmdet.models.dense_heads import RPNHead

    names = 'predict predict_by_feat _predict_by_feat_single _bbox_post_process'
    require_methods(head, RPNHead, names)
    _check_outputs(head)


def _check_outputs(head: nn.Module) -> None:
    """Raise an error unless scores and boxes come of the outputs in a way that is known here."""
    check_box_coder(head, ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder'))
    if has_own_activation(head):
        refuse(head, f'{type(head.loss_cls).__name__} turns its outputs into scores')


def check_box_coder(head: nn.Module, known: Sequence[str]) -> None:
    """Raise an error unless the class of the box coder of a head is one of mmdet's named here."""
    from mmdet.models.task_modules import coders

    coder = head.bbox_coder
    if type(coder) not in [getattr(coders, name) for name in known]:
        refuse(head, f'its box coder is a {type(coder).__name__}; known are {", ".join(known)}')
    if getattr(coder, 'add_ctr_clamp', False):
        refuse(head, 'its box coder has add_ctr_clamp')


def dense_candidates(
    head: nn.Module, maps: Sequence[Tensor], limits: Limits, corner: Tensor
) -> tuple[Candidates, Tensor]:
    """Candidates of a head, as its ``predict`` has them before the suppression.

    Args:
        head (nn.Module): Head that :func:`check_dense_head` or :func:`check_rpn_head` let pass.
        maps (Sequence[Tensor]): Its inputs ``(N, C, H, W)``.
        limits (Limits): Limits of the step.
        corner (Tensor): What boxes are clipped to, see :func:`largest_corner`.

    Returns:
        tuple[Candidates, Tensor]: The candidates, and the level ``(N, K)`` of each.
    """
    scores, boxes, *factors = head(maps)
    levels = [above(_scores(head, level), limits.score_threshold) for level in scores]
    classes = levels[0].shape[2]
    values, indices = torch.ops.mmlska.strongest_of_levels(
        [level.flatten(1) for level in levels], limits.candidates
    )
    places, labels = indices // classes, indices % classes
    if factors:
        centerness = _together(factors[0], 1).sigmoid().squeeze(2).gather(1, places)
        values = torch.where(values >= 0, values * centerness, NO_CANDIDATE)
    priors = _priors(head, maps)
    found = _decode(head, torch.cat(priors)[places], pick(_together(boxes, 4), places))
    if head.bbox_coder.clip_border:
        found = clip(found, corner)
    candidates = Candidates(found, values, labels)
    if limits.smallest_side >= 0:
        candidates = without_small(candidates, limits.smallest_side)
    numbers = [torch.full_like(level[:, 0], i, dtype=torch.long) for i, level in enumerate(priors)]
    return candidates, torch.cat(numbers)[places]


def _priors(head: nn.Module, maps: Sequence[Tensor], **options: bool) -> list[Tensor]:
    """Anchors ``(P, 4)`` or points ``(P, 2)`` of each level."""
    sizes = [level_map.shape[2:] for level_map in maps]
    first = maps[0]
    return head.prior_generator.grid_priors(
        sizes, dtype=first.dtype, device=first.device, **options
    )


def _scores(head: nn.Module, level: Tensor) -> Tensor:
    """Scores ``(N, P, classes)`` of a level."""
    level = rows_of(level, head.cls_out_channels)
    return level.sigmoid() if head.use_sigmoid_cls else level.softmax(-1)[..., :-1]


def _together(levels: Sequence[Tensor], per_row: int) -> Tensor:
    """Maps of all levels as rows ``(N, P, per_row)``."""
    return torch.cat([rows_of(level, per_row) for level in levels], 1)


def _decode(head: nn.Module, priors: Tensor, predicted: Tensor) -> Tensor:
    coder = head.bbox_coder
    if hasattr(coder, 'means'):
        return decode_deltas(priors, predicted, coder.means, coder.stds)
    return decode_distances(priors, predicted)


def check_yolox_head(head: nn.Module) -> None:
    """Raise an error unless a head predicts as mmdet's ``YOLOXHead`` does."""
    from mmdet.models.dense_heads import YOLOXHead

    names = 'predict predict_by_feat _bbox_decode _bbox_post_process'
    require_methods(head, YOLOXHead, names)
    if has_own_activation(head):
        refuse(head, f'{type(head.loss_cls).__name__} turns its outputs into scores')


def yolox_candidates(head: nn.Module, maps: Sequence[Tensor], limits: Limits) -> Candidates:
    """Candidates of a YOLOX head: each place competes for the class that it likes best."""
    scores, boxes, objectness = head(maps)
    scores, boxes = _together(scores, head.cls_out_channels), _together(boxes, 4)
    objectness = _together(objectness, 1).squeeze(2)
    values, labels = scores.sigmoid().max(-1)
    values = values * objectness.sigmoid()
    # Unlike the other heads, this one lets a score pass that equals the threshold.
    values = torch.where(values >= limits.score_threshold, values, NO_CANDIDATE)
    priors = torch.cat(_priors(head, maps, with_stride=True))
    centers, strides = priors[:, :2], priors[:, 2:]
    centers = boxes[..., :2] * strides + centers
    sides = boxes[..., 2:].exp() * strides
    return Candidates(torch.cat([centers - sides / 2, centers + sides / 2], -1), values, labels)
