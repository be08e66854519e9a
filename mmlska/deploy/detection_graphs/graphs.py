"""Detectors as one graph each, from images to boxes, scores and labels."""

from torch import Tensor, nn

from .candidates import Candidates, largest_corner, suppress, survivors
from .dense import (
    check_dense_head,
    check_rpn_head,
    check_yolox_head,
    dense_candidates,
    yolox_candidates,
)
from .regions import check_roi_head, masks_of, region_candidates
from .settings import check_overrides, limits_of, refuse, require_methods


class DetectionGraph(nn.Module):
    """A detector with its post-processing; see :func:`detection_graph`."""

    output_names: tuple[str, ...] = ('boxes', 'scores', 'labels')

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector


class DenseGraph(DetectionGraph):
    """A one-stage detector whose head predicts at every place."""

    def __init__(
        self, detector: nn.Module, score_threshold: float | None, max_detections: int | None
    ) -> None:
        super().__init__(detector)
        head = detector.bbox_head
        check_dense_head(head)
        self.limits = limits_of(head, head.test_cfg, score_threshold, max_detections)

    def forward(self, image: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detections of images."""
        maps = self.detector.extract_feat(image)
        candidates, _ = dense_candidates(
            self.detector.bbox_head, maps, self.limits, largest_corner(image, sizes)
        )
        kept = suppress(candidates, candidates.labels, self.limits.suppression)
        return tuple(survivors(candidates, kept))


class YOLOXGraph(DetectionGraph):
    """YOLOX, whose boxes may reach beyond the image."""

    def __init__(
        self, detector: nn.Module, score_threshold: float | None, max_detections: int | None
    ) -> None:
        super().__init__(detector)
        head = detector.bbox_head
        check_yolox_head(head)
        self.limits = limits_of(head, head.test_cfg, score_threshold, max_detections)

    def forward(self, image: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detections of images."""
        maps = self.detector.extract_feat(image)
        candidates = yolox_candidates(self.detector.bbox_head, maps, self.limits)
        kept = suppress(candidates, candidates.labels, self.limits.suppression)
        return tuple(survivors(candidates, kept))


class TwoStageGraph(DetectionGraph):
    """Faster R-CNN or Mask R-CNN."""

    def __init__(
        self, detector: nn.Module, score_threshold: float | None, max_detections: int | None
    ) -> None:
        super().__init__(detector)
        rpn, head = detector.rpn_head, detector.roi_head
        check_rpn_head(rpn)
        check_roi_head(head)
        self.rpn_limits = limits_of(rpn, rpn.test_cfg)
        self.limits = limits_of(head, head.test_cfg, score_threshold, max_detections)
        if head.with_mask:
            self.output_names = (*DetectionGraph.output_names, 'masks')

    def forward(self, image: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detections of images."""
        maps = self.detector.extract_feat(image)
        head, corner = self.detector.roi_head, largest_corner(image, sizes)
        regions, levels = dense_candidates(self.detector.rpn_head, maps, self.rpn_limits, corner)
        proposals = survivors(regions, suppress(regions, levels, self.rpn_limits.suppression))
        candidates = region_candidates(head, maps, proposals, self.limits, corner)
        kept = suppress(candidates, candidates.labels, self.limits.suppression)
        detections: Candidates = survivors(candidates, kept)
        if not head.with_mask:
            return tuple(detections)
        return *detections, masks_of(head, maps, detections)


def detection_graph(
    model: nn.Module, score_threshold: float | None = None, max_detections: int | None = None
) -> DetectionGraph:
    """Make one module of a detector of mmdet and its post-processing, ready to be exported.

    Args:
        model (nn.Module): A one-stage detector whose head predicts as mmdet's ``BaseDenseHead``
            does (RetinaNet, ATSS, FCOS, RTMDet and others), a YOLOX, a Faster R-CNN or a Mask
            R-CNN. It is put into evaluation mode.
        score_threshold (float, optional): Stands in for ``score_thr`` of the configuration.
        max_detections (int, optional): Stands in for ``max_per_img``.

    Returns:
        DetectionGraph: Takes images ``(N, 3, H, W)`` of float32, normalised and padded as the
        model's data preprocessor does, and returns tensors named by its ``output_names``: boxes
        ``(N, M, 4)`` as x1, y1, x2, y2 in pixels of the input, scores ``(N, M)`` by falling score,
        labels ``(N, M)`` of int64, and of a Mask R-CNN masks ``(N, M, h, w)``, probabilities on a
        grid over the box. M is the largest number of detections of an image, at least 1. The rows
        of other images end in boxes and scores of 0 with the label -1; their masks mean nothing.
        A second argument ``(N, 2)`` may hold height and width of each image without its padding;
        boxes are clipped to that, or else to the whole input.

    Raises:
        TypeError: If there is no graph of this class, or of one of its parts or settings.
        ValueError: If a threshold or number is out of range.
    """
    from mmdet.models.dense_heads import YOLOXHead
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector

    check_overrides(score_threshold, max_detections)
    if isinstance(model, TwoStageDetector):
        require_methods(model, TwoStageDetector, 'predict extract_feat')
        kind = TwoStageGraph
    elif isinstance(model, SingleStageDetector):
        require_methods(model, SingleStageDetector, 'predict extract_feat')
        kind = YOLOXGraph if isinstance(model.bbox_head, YOLOXHead) else DenseGraph
    else:
        refuse(model, 'it is neither a SingleStageDetector nor a TwoStageDetector of mmdet')
    return kind(model, score_threshold, max_detections).eval()
