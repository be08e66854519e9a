"""Heads of a two-stage detector, which look at regions: boxes and masks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .candidates import Candidates, above, clip, decode_deltas
from .dense import check_box_coder
from .operators import NO_CANDIDATE
from .settings import Limits, has_own_activation, refuse, require_methods


def check_roi_head(head: nn.Module) -> None:
    """Raise an error unless boxes and masks come as from mmdet's ``StandardRoIHead``."""
    from mmdet.models.roi_heads import StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    names = 'predict predict_bbox predict_mask _bbox_forward _mask_forward'
    require_methods(head, StandardRoIHead, names)
    if head.with_shared_head:
        refuse(head, 'its heads share layers (shared_head)')
    _check_extractor(head.bbox_roi_extractor)
    require_methods(head.bbox_head, BBoxHead, 'predict_by_feat _predict_by_feat_single')
    if not (head.bbox_head.with_cls and head.bbox_head.with_reg):
        refuse(head.bbox_head, 'it predicts no classes or no boxes')
    check_box_coder(head.bbox_head, ['DeltaXYWHBBoxCoder'])
    if has_own_activation(head.bbox_head):
        refuse(
            head.bbox_head,
            f'{type(head.bbox_head.loss_cls).__name__} turns its outputs into scores',
        )
    if head.with_mask:
        _check_extractor(head.mask_roi_extractor)
        require_methods(head.mask_head, FCNMaskHead, 'predict_by_feat _predict_by_feat_single')


def _check_extractor(extractor: nn.Module) -> None:
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    require_methods(extractor, SingleRoIExtractor, 'forward map_roi_levels')
    for layer in extractor.roi_layers:
        if type(layer) is not RoIAlign or layer.pool_mode != 'avg':
            refuse(layer, 'regions are read by RoIAlign that takes means (pool_mode="avg")')


def as_rois(boxes: Tensor) -> Tensor:
    """Boxes ``(N, P, 4)`` with the index of their image, ``(N * P, 5)``."""
    images = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    images = images.view(-1, 1, 1).expand(-1, boxes.shape[1], 1)
    return torch.cat([images, boxes], 2).flatten(0, 1)


def region_features(extractor: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Features ``(R, C, h, w)`` of regions ``(R, 5)``, each from the level for its size."""
    count = extractor.num_inputs
    layers = extractor.roi_layers
    if count > 1:
        levels = extractor.map_roi_levels(rois, count)
    else:
        levels = torch.zeros_like(rois[:, 0], dtype=torch.long)
    return torch.ops.mmlska.pyramid_roi_align(
        list(maps[:count]),
        rois,
        levels,
        layers[0].output_size,
        [layer.spatial_scale for layer in layers],
        layers[0].sampling_ratio,
        layers[0].aligned,
    )


def region_candidates(
    head: nn.Module, maps: Sequence[Tensor], proposals: Candidates, limits: Limits, corner: Tensor
) -> Candidates:
    """Candidates of the box head: each proposal ``(N, P)`` competes for every class."""
    rois = as_rois(proposals.boxes)
    bbox_head = head.bbox_head
    scores, deltas = bbox_head(region_features(head.bbox_roi_extractor, maps, rois))
    images, count = proposals.scores.shape
    scores = scores.softmax(-1)[:, :-1].reshape(images, count, bbox_head.num_classes)
    is_proposal = (proposals.labels >= 0).unsqueeze(2)
    scores = torch.where(is_proposal, above(scores, limits.score_threshold), NO_CANDIDATE)
    coder = bbox_head.bbox_coder
    # One box for all classes, or one for each.
    deltas = deltas.reshape(images, count, -1, 4)
    boxes = decode_deltas(proposals.boxes.unsqueeze(2), deltas, coder.means, coder.stds)
    boxes = boxes.expand(-1, -1, bbox_head.num_classes, -1).flatten(1, 2)
    if coder.clip_border:
        boxes = clip(boxes, corner)
    labels = torch.arange(bbox_head.num_classes, device=boxes.device).expand_as(scores)
    return Candidates(boxes, scores.flatten(1), labels.flatten(1))


def masks_of(head: nn.Module, maps: Sequence[Tensor], detections: Candidates) -> Tensor:
    """Mask of each detection as probabilities on a grid over its box, ``(N, M, h, w)``."""
    rois = as_rois(detections.boxes)
    masks = head.mask_head(region_features(head.mask_roi_extractor, maps, rois))
    masks = masks.unflatten(0, detections.scores.shape)
    channels = detections.labels.clamp(min=0)
    if head.mask_head.class_agnostic:
        channels = torch.zeros_like(channels)
    channels = channels[..., None, None, None].expand(-1, -1, 1, *masks.shape[3:])
    return masks.gather(2, channels).squeeze(2).sigmoid()
