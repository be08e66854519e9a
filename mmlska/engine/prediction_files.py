"""What a model finds in images and videos, as files that other programs read.

``coco``: one file in COCO's format with all detections; ``yolo``: a text file for each image, in
the format that Ultralytics writes; ``labels``: a label map (PNG) for each image.
"""

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement, InstanceData
from mmengine.utils import track_iter_progress

from .inference import Predictor
from .media_files import VideoFile, read_video

# What can be written, and of which models: detectors or segmentors.
OF_DETECTORS = {'coco': True, 'yolo': True, 'labels': False}
FILES_OF_AN_IMAGE = {'yolo': '.txt', 'labels': '.png'}
DEFAULT_FRAMES_PER_SECOND = 25.0


class PredictionFiles:
    """Predicts on images and videos, draws them, and writes what was found.

    Args:
        predictor: The trained model.
        folder: Where the files go: ``coco.json``, and the folders ``yolo`` and ``labels``.
        kinds: Which files, of ``'coco'``, ``'yolo'`` and ``'labels'``; none by default.
        score_thr: Least score of a detection that is drawn or written.
        show: Whether to show pictures in a window.

    Raises:
        ValueError: If the model cannot fill one of these files.
    """

    def __init__(
        self,
        predictor: Predictor,
        folder: str | Path,
        kinds: Collection[str] = (),
        score_thr: float = 0.3,
        show: bool = False,
    ) -> None:
        for kind in kinds:
            if OF_DETECTORS[kind] != predictor.is_detector:
                mine, its = ('detector', 'segmentor')[:: 1 if predictor.is_detector else -1]
                fitting = ', '.join(
                    k for k in OF_DETECTORS if OF_DETECTORS[k] != OF_DETECTORS[kind]
                )
                raise ValueError(f'{kind} is of a {its}; of a {mine} there is {fitting}')
        self.predictor = predictor
        self.folder = Path(folder)
        self.kinds = kinds
        self.score_thr = score_thr
        self.show = show
        self.coco = CocoFile(predictor.visualizer.dataset_meta['classes'])

    def add_image(self, path: Path, picture: Path | None = None) -> str:
        """Predict on an image, draw it into a file, and keep what was found.

        Returns:
            What was found, in words.
        """
        prediction = self.predictor(path)
        self._keep(prediction, Path(path.stem), file_name=path.name)
        if picture is not None or self.show:
            self.predictor.draw(path, prediction, picture, self.score_thr, self.show)
        return self.predictor.describe(prediction, self.score_thr)

    def add_video(self, path: Path, drawn: Path | None = None) -> str:
        """Predict on each frame of a video, as :meth:`add_image`, with a bar that shows how far.

        Returns:
            How many frames there were.

        Raises:
            UnreadableVideoError: If OpenCV finds no frame in it.
            OSError: If the drawn video cannot be written.
        """
        video, number = read_video(path), 0
        with VideoFile(drawn, video.fps or DEFAULT_FRAMES_PER_SECOND) as file:
            for frame in track_iter_progress((video, len(video)), file=sys.stderr):
                prediction = self.predictor(frame)
                stem = Path(path.stem, f'{number:06d}')
                self._keep(prediction, stem, file_name=path.name, frame=number)
                if drawn is not None or self.show:
                    shown = self.show
                    file.write(self.predictor.draw(frame, prediction, None, self.score_thr, shown))
                number += 1
        stated = f', of {len(video)} that the file states' if number < len(video) else ''
        return f'{number} frames{stated}'

    def close(self) -> None:
        """Write what is of all images together."""
        if 'coco' in self.kinds:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / 'coco.json').write_text(json.dumps(self.coco.content), encoding='utf-8')

    def _keep(self, prediction: BaseDataElement, stem: Path, **names: Any) -> None:
        """Write or collect what was found in one image."""
        if 'coco' in self.kinds:
            found = detections(prediction, self.score_thr)
            self.coco.add(found, prediction.ori_shape[:2], **names)
        for kind in sorted(FILES_OF_AN_IMAGE.keys() & set(self.kinds)):
            file = self.folder / kind / stem.with_name(stem.name + FILES_OF_AN_IMAGE[kind])
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == 'yolo':
                found = detections(prediction, self.score_thr)
                file.write_text(yolo_text(found, prediction.ori_shape[:2]), encoding='utf-8')
            else:
                cv2.imwrite(str(file), label_map(prediction))


class CocoFile:
    """Detections in COCO's format.

    Category ids count from 1 in the order of the classes. Each annotation has a ``score``, so that
    the list of annotations also serves as a file of results.

    Args:
        classes: Names of the classes.

    Attributes:
        content: Images, categories and annotations.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        self.content: dict[str, list[dict]] = dict(images=[], categories=categories, annotations=[])

    def add(self, found: InstanceData, size: tuple[int, int], **names: Any) -> None:
        """Append an image.

        Args:
            found: Its detections.
            size: Its height and width.
            names: ``file_name``, and ``frame`` of a video.
        """
        images, annotations = self.content['images'], self.content['annotations']
        height, width = size
        images.append(dict(id=len(images) + 1, height=height, width=width, **names))
        for index in range(len(found)):
            left, top, right, bottom = found.bboxes[index].tolist()
            annotation = dict(
                id=len(annotations) + 1,
                image_id=len(images),
                category_id=int(found.labels[index]) + 1,
                bbox=[left, top, right - left, bottom - top],
                area=(right - left) * (bottom - top),
                iscrowd=0,
                score=float(found.scores[index]),
            )
            if 'masks' in found:
                annotation |= run_lengths(np.asarray(found.masks[index], np.uint8))
            annotations.append(annotation)


def detections(prediction: BaseDataElement, score_thr: float) -> InstanceData:
    """Detections of at least that score, on the CPU.

    Raises:
        ValueError: If the model predicts no upright boxes.
    """
    found = prediction.get('pred_instances')
    if found is None or found.bboxes.shape[-1] != 4:
        raise ValueError('the model predicts no upright boxes, of which these files consist')
    return found[found.scores > score_thr].cpu()


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """``segmentation`` and ``area`` of a binary mask ``(H, W)`` in COCO's format."""
    # Segmentation does without pycocotools.
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(mask))
    area = float(coco_mask.area(code))
    return dict(segmentation=dict(code, counts=code['counts'].decode()), area=area)


def yolo_text(found: InstanceData, size: tuple[int, int]) -> str:
    """A line for each detection: class from 0, centre, width and height, and the score.

    Args:
        found: The detections.
        size: Height and width of the image, of which lengths are fractions.
    """
    height, width = size
    lines = []
    for box, label, score in zip(found.bboxes, found.labels, found.scores, strict=True):
        left, top, right, bottom = box.tolist()
        numbers = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
            float(score),
        )
        lines.append(' '.join([str(int(label)), *(f'{number:.6f}' for number in numbers)]) + '\n')
    return ''.join(lines)


def label_map(prediction: BaseDataElement) -> np.ndarray:
    """Class of each pixel, from 0: bytes ``(H, W)``, or 16 bits where classes need them."""
    labels = prediction.pred_sem_seg.data[0].cpu().numpy()
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
