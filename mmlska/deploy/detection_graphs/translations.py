"""The operators of the graphs, written in those of ONNX (opset 18)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .operators import NO_CANDIDATE

BOOL, INT64 = 9, 7  # onnx.TensorProto


def custom_translation_table() -> dict[Callable, Callable]:
    """What ``torch.onnx.export(..., custom_translation_table=...)`` needs for a detection graph.

    Returns:
        dict[Callable, Callable]: The overloads of the operators, and what writes each.

    Raises:
        ImportError: If ``onnxscript`` is not installed.
    """
    _opset()
    return {
        torch.ops.mmlska.strongest_of_levels.default: _strongest_of_levels,
        torch.ops.mmlska.suppress_boxes.default: _non_max_suppression,
        torch.ops.mmlska.pyramid_roi_align.default: _roi_align,
    }


def _opset() -> Any:
    from onnxscript import opset18

    return opset18


def _integers(*values: int) -> Any:
    return _opset().Constant(value_ints=list(values))


def _strongest_of_levels(levels: Sequence[Any], most: int) -> tuple[Any, Any]:
    """TopK of each level."""
    op = _opset()
    values, indices, start = [], [], _integers(0)
    for scores in levels:
        size = op.Shape(scores, start=1, end=2)
        highest, places = op.TopK(scores, op.Min(size, _integers(most)), axis=1)
        values.append(highest)
        indices.append(op.Add(places, start))
        start = op.Add(start, size)
    return op.Concat(*values, axis=1), op.Concat(*indices, axis=1)


def _non_max_suppression(boxes: Any, scores: Any, iou_threshold: float, most: int) -> Any:
    """NonMaxSuppression of one class, and the indices in the order of the scores.

    The operator lists what is kept of all images, each box as image, class and index.
    """
    op = _opset()
    listed = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, _integers(1)),
        _integers(most),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[NO_CANDIDATE / 2]),
    )
    listed = op.Gather(listed, _integers(0, 2), axis=1)
    ones = op.Expand(op.Constant(value_int=1), op.Shape(listed, start=0, end=1))
    kept = op.ScatterND(op.Expand(op.Constant(value_int=0), op.Shape(scores)), listed, ones)
    longest = op.Max(
        op.ReduceMax(op.ReduceSum(kept, _integers(1), keepdims=0), keepdims=1), _integers(1)
    )
    kept_scores = op.Where(op.Cast(kept, to=BOOL), scores, op.Constant(value_float=NO_CANDIDATE))
    values, indices = op.TopK(kept_scores, longest, axis=1)
    is_kept = op.GreaterOrEqual(values, op.Constant(value_float=0.0))
    return op.Where(is_kept, indices, op.Constant(value_int=-1))


def _roi_align(
    maps: Sequence[Any],
    rois: Any,
    levels: Any,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    """RoiAlign of the boxes of each level, put where the boxes stand."""
    op = _opset()
    column = _integers(1)
    images = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=INT64)
    boxes = op.Slice(rois, _integers(1), _integers(5), column)
    height, width = output_size
    shape = op.Concat(
        op.Shape(rois, start=0, end=1),
        op.Shape(maps[0], start=1, end=2),
        _integers(height, width),
        axis=0,
    )
    features = op.Expand(op.CastLike(op.Constant(value_float=0.0), maps[0]), shape)
    for level, (level_map, scale) in enumerate(zip(maps, scales, strict=True)):
        own = op.NonZero(op.Equal(levels, op.Constant(value_int=level)))
        own = op.Squeeze(own, _integers(0))
        found = op.RoiAlign(
            level_map,
            op.Gather(boxes, own),
            op.Gather(images, own),
            output_height=height,
            output_width=width,
            spatial_scale=scale,
            sampling_ratio=sampling_ratio,
            mode='avg',
            coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
        )
        features = op.ScatterND(features, op.Unsqueeze(own, column), found)
    return features
