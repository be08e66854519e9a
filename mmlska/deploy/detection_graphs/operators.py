"""Steps of a detector whose shapes depend on values or sizes, as operators of PyTorch.

Suppression of boxes and RoIAlign have operators of their own in ONNX, and kernels in mmcv: a graph
calls the kernels in PyTorch and, exported, has the operators. How many boxes an image keeps, and
which regions a level of the pyramid serves, only their values tell; no exporter needs to know. Nor
how many candidates of all levels compete: a sum of minima of products of the image's sides, which
makes an export three times as slow where it is carried on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if not hasattr(torch.library, 'custom_op'):
    raise ImportError(f'graphs of detectors need PyTorch 2.4 or newer, this is {torch.__version__}')

# Scores are at least 0: this one marks what is no candidate, and stays below any threshold.
NO_CANDIDATE = -1.0


@torch.library.custom_op('mmlska::strongest_of_levels', mutates_args=())
def strongest_of_levels(levels: Sequence[Tensor], most: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each level.

    Args:
        levels (Sequence[Tensor]): Scores ``(N, P)`` of each level.
        most (int): How many of a level are taken at most.

    Returns:
        tuple[Tensor, Tensor]: The scores ``(N, K)``, level by level and falling in each, and their
        indices among those of all levels put together.
    """
    values, indices, start = [], [], 0
    for scores in levels:
        highest, places = scores.topk(min(most, scores.shape[1]), dim=1)
        values.append(highest)
        indices.append(places + start)
        start += scores.shape[1]
    return torch.cat(values, 1), torch.cat(indices, 1)


@strongest_of_levels.register_fake
def _(levels: Sequence[Tensor], most: int) -> tuple[Tensor, Tensor]:
    sizes = [scores.shape[1] for scores in levels]
    if all(isinstance(size, int) for size in sizes):
        count = sum(min(most, size) for size in sizes)
    else:
        count = torch.library.get_ctx().new_dynamic_size(min=1)
    values = levels[0].new_empty(levels[0].shape[0], count)
    return values, torch.empty_like(values, dtype=torch.long)


@torch.library.custom_op('mmlska::suppress_boxes', mutates_args=())
def suppress_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Greedy non-maximum suppression of each image.

    Args:
        boxes (Tensor): Corners ``(N, K, 4)`` as x1, y1, x2, y2.
        scores (Tensor): Scores ``(N, K)``; negative ones mark what is no candidate.
        iou_threshold (float): A box goes that overlaps a kept one of higher score by more.
        most (int): How many boxes an image keeps at most.

    Returns:
        Tensor: Indices ``(N, M)`` of the kept boxes by falling score, int64. M is the largest
        number that an image keeps, at least 1; the rows of the others end in -1.
    """
    # mmcv-lite has no such module.
    from mmcv.ops import nms

    rows = []
    for candidates, values in zip(boxes, scores, strict=True):
        present = (values >= 0).nonzero()[:, 0]
        _, kept = nms(candidates[present], values[present], iou_threshold)
        rows.append(present[kept[:most]])
    rows.append(boxes.new_full((1,), -1, dtype=torch.long))
    return pad_sequence(rows, batch_first=True, padding_value=-1)[:-1]


@suppress_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    return scores.new_empty(scores.shape[0], longest, dtype=torch.long)


@torch.library.custom_op('mmlska::pyramid_roi_align', mutates_args=())
def pyramid_roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) of each box on its level of a pyramid.

    Args:
        maps (Sequence[Tensor]): Maps ``(N, C, H, W)`` of the levels.
        rois (Tensor): Index of the image and corners in its pixels, ``(R, 5)``.
        levels (Tensor): Level of each box, ``(R,)``, int64.
        output_size (Sequence[int]): Height and width of the result.
        scales (Sequence[float]): Size of a map in relation to the image, of each level.
        sampling_ratio (int): Samples of a bin in each direction; 0 stands for as many as the bin
            has pixels, rounded up.
        aligned (bool): Whether pixel (0, 0) covers the area from 0 to 1, and no half a pixel less.

    Returns:
        Tensor: Features ``(R, C, h, w)``.
    """
    from mmcv.ops import roi_align

    features = maps[0].new_zeros(len(rois), maps[0].shape[1], *output_size)
    for level, (level_map, scale) in enumerate(zip(maps, scales, strict=True)):
        own = (levels == level).nonzero()[:, 0]
        # mmcv takes any map for contiguous.
        features[own] = roi_align(
            level_map.contiguous(), rois[own], output_size, scale, sampling_ratio, 'avg', aligned
        )
    return features


@pyramid_roi_align.register_fake
def _(maps: Sequence[Tensor], rois: Tensor, levels: Tensor, output_size, *settings) -> Tensor:
    return maps[0].new_empty(rois.shape[0], maps[0].shape[1], *output_size)
