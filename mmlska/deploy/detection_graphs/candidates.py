"""Boxes that compete: chosen, decoded, suppressed. All of it in batches and without branches.

The values are those of mmdet's heads, image by image: the order of the operations is theirs, so
that scores and boxes agree to the last bits. A candidate that a threshold removes keeps its row,
with the score :data:`NO_CANDIDATE`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .operators import NO_CANDIDATE

# Widths and heights change by this factor at most (mmdet's wh_ratio_clip).
LARGEST_LOG_RATIO = abs(math.log(16 / 1000))


class Candidates(NamedTuple):
    """Boxes ``(N, K, 4)`` with corners in pixels, scores and labels ``(N, K)``."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Suppression(NamedTuple):
    """Settings of the suppression: see :func:`suppress`."""

    iou_threshold: float
    class_agnostic: bool
    most: int


def largest_corner(image: Tensor, sizes: Tensor | None) -> Tensor:
    """The corner that boxes are clipped to, as width, height, width, height.

    Args:
        image (Tensor): Images ``(N, 3, H, W)``.
        sizes (Tensor, optional): Height and width of each image without its padding, ``(N, 2)``.

    Returns:
        Tensor: ``(1, 1, 4)`` or ``(N, 1, 4)``.
    """
    if sizes is None:
        height, width = (
            torch.scalar_tensor(side, dtype=image.dtype, device=image.device)
            for side in image.shape[2:]
        )
        return torch.stack([width, height, width, height]).view(1, 1, 4)
    return sizes.to(image.dtype).flip(1).repeat(1, 2).unsqueeze(1)


def pick(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows ``(N, M, C)`` of a tensor ``(N, K, C)`` by indices ``(N, M)``."""
    return rows.gather(1, indices.unsqueeze(2).expand(-1, -1, rows.shape[2]))


def rows_of(channels: Tensor, per_row: int) -> Tensor:
    """A map ``(N, A * C, H, W)`` as rows ``(N, H * W * A, C)``, as mmdet numbers its priors."""
    return channels.permute(0, 2, 3, 1).reshape(channels.shape[0], -1, per_row)


def above(scores: Tensor, threshold: float) -> Tensor:
    """The scores, with :data:`NO_CANDIDATE` in place of those that are not above a threshold."""
    return torch.where(scores > threshold, scores, NO_CANDIDATE)


def decode_deltas(
    boxes: Tensor, deltas: Tensor, means: tuple[float, ...], stds: tuple[float, ...]
) -> Tensor:
    """Shift and scale boxes ``(..., 4)`` by what R-CNN predicts (arXiv:1311.2524, appendix C)."""
    deltas = deltas * deltas.new_tensor(stds) + deltas.new_tensor(means)
    centers = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    sides = boxes[..., 2:] - boxes[..., :2]
    ratios = deltas[..., 2:].clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    centers = centers + sides * deltas[..., :2]
    halves = sides * ratios.exp() * 0.5
    return torch.cat([centers - halves, centers + halves], -1)


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes from points ``(..., 2)`` and their distances to the four sides ``(..., 4)``."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def clip(boxes: Tensor, corner: Tensor) -> Tensor:
    """Boxes ``(N, K, 4)`` that end at the border of the image."""
    return torch.minimum(boxes.clamp(min=0), corner)


def without_small(candidates: Candidates, smallest: float) -> Candidates:
    """Remove candidates that are no wider or no higher than a number of pixels."""
    sides = candidates.boxes[..., 2:] - candidates.boxes[..., :2]
    large = (sides > smallest).all(-1)
    return candidates._replace(scores=torch.where(large, candidates.scores, NO_CANDIDATE))


def suppress(candidates: Candidates, groups: Tensor, settings: Suppression) -> Tensor:
    """Which candidates survive: boxes suppress each other within a group, as in mmcv's batched_nms.

    Args:
        candidates (Candidates): The candidates.
        groups (Tensor): Group of each, ``(N, K)``: its label, or its level.
        settings (Suppression): Largest overlap; whether all are one group; how many an image keeps.

    Returns:
        Tensor: Indices ``(N, M)`` by falling score, -1 where an image has fewer.
    """
    boxes = candidates.boxes
    if not settings.class_agnostic:
        present = (candidates.scores >= 0).unsqueeze(2)
        apart = torch.where(present, boxes, 0).amax((1, 2)) + 1
        boxes = boxes + (groups * apart.unsqueeze(1)).unsqueeze(2)
    return torch.ops.mmlska.suppress_boxes(
        boxes, candidates.scores, settings.iou_threshold, settings.most
    )


def survivors(candidates: Candidates, kept: Tensor) -> Candidates:
    """The candidates of the indices that :func:`suppress` returns.

    Returns:
        Candidates: ``(N, M)`` of them; where an index is -1, the box and score are 0 and the label
        is -1.
    """
    rows, is_kept = kept.clamp(min=0), kept >= 0
    return Candidates(
        torch.where(is_kept.unsqueeze(2), pick(candidates.boxes, rows), 0),
        torch.where(is_kept, candidates.scores.gather(1, rows), 0),
        torch.where(is_kept, candidates.labels.gather(1, rows), -1),
    )
