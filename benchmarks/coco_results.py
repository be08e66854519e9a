"""Detections made up for an evaluation by COCO's rules, and evaluations of them side by side."""

import contextlib
import io
import time
from typing import Any

import numpy as np

from mmlska.evaluation.faster_coco import evaluation_class

SIDE = (480, 640)
NUM_CLASSES = 80
# As many as there are in COCO's validation images on average.
OBJECTS = 7.3
CORNERS = 12


def make_results(
    num_images: int, num_detections: int = 100, seed: int = 0
) -> tuple[dict, list[dict]]:
    """Make annotations and the detections of a mediocre detector, boxes and masks.

    Sizes are spread like COCO's. Two detections of three are near an object, with boxes from
    close to far off and sometimes the wrong class; the others are anywhere. Some objects are
    crowds, and some detections have equal scores.

    Args:
        num_images: How many images to make.
        num_detections: How many detections there are in each.
        seed: Of the random numbers.

    Returns:
        The annotations as a COCO data set, and the results as the list that ``loadRes`` takes.
    """
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, num_images + 1):
        count = rng.poisson(OBJECTS)
        boxes, labels = random_boxes(rng, count), rng.integers(1, NUM_CLASSES + 1, count)
        for box, label in zip(boxes, labels, strict=True):
            crowd = bool(rng.random() < 0.02)
            annotations.append(
                dict(make_object(rng, image_id, box, label), iscrowd=int(crowd), ignore=0)
            )
        results += make_detections(rng, image_id, boxes, labels, num_detections)
    for index, annotation in enumerate(annotations, 1):
        annotation['id'] = index
    images = [dict(id=i, height=SIDE[0], width=SIDE[1]) for i in range(1, num_images + 1)]
    categories = [dict(id=i, name=str(i)) for i in range(1, NUM_CLASSES + 1)]
    dataset = dict(images=images, annotations=annotations, categories=categories, info={})
    return dataset, results


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes ``(count, 4)`` as left, top, width, height; sides from 8 pixels to the image's."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    top_left = rng.uniform(0, 1, (count, 2)) * (np.array(SIDE[::-1]) - sides)
    return np.concatenate([top_left, sides], axis=1)


def make_detections(
    rng: np.random.Generator, image_id: int, boxes: np.ndarray, labels: np.ndarray, count: int
) -> list[dict]:
    """Detections in one image with the given objects."""
    num_near = 2 * count // 3 if len(boxes) else 0
    chosen = rng.integers(0, max(len(boxes), 1), num_near)
    noise = rng.gamma(1.0, 0.15, (num_near, 1))
    near = boxes[chosen].reshape(-1, 4)
    near = near + noise * rng.normal(size=near.shape) * near[:, [2, 3, 2, 3]]
    wrong = rng.random(num_near) < 0.2
    near_labels = np.where(wrong, rng.integers(1, NUM_CLASSES + 1, num_near), labels[chosen])
    far = random_boxes(rng, count - num_near)
    far_labels = rng.integers(1, NUM_CLASSES + 1, len(far))
    # Two digits only, so that some scores are equal and the order of the sorting shows.
    scores = np.concatenate([rng.beta(4, 2, num_near) - noise[:, 0] / 4, rng.beta(1, 4, len(far))])
    scores = scores.clip(0.01, 0.99).round(2)
    found = zip(
        clip_boxes(np.concatenate([near, far])),
        np.concatenate([near_labels, far_labels]),
        scores,
        strict=True,
    )
    return [
        dict(make_object(rng, image_id, box, label), score=float(score))
        for box, label, score in found
    ]


def clip_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(N, 4)`` cut at the borders of the image, of at least two pixels a side."""
    height, width = SIDE
    left = boxes[:, 0].clip(0, width - 2)
    top = boxes[:, 1].clip(0, height - 2)
    right = np.maximum(boxes[:, 0] + boxes[:, 2], left + 2).clip(None, width)
    bottom = np.maximum(boxes[:, 1] + boxes[:, 3], top + 2).clip(None, height)
    return np.stack([left, top, right - left, bottom - top], axis=1)


def make_object(rng: np.random.Generator, image_id: int, box: np.ndarray, label: int) -> dict:
    """What annotations and results share; the mask is a ragged ellipse inside the box."""
    from pycocotools import mask

    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radii = rng.uniform(0.7, 1, CORNERS)[:, None] / 2
    points = 0.5 + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    polygon = box[:2] + points * box[2:]
    (rle,) = mask.frPyObjects([polygon.ravel().tolist()], *SIDE)
    return dict(
        image_id=image_id,
        category_id=int(label),
        bbox=box.tolist(),
        area=float(mask.area(rle)),
        segmentation=dict(rle, counts=rle['counts'].decode()),
    )


def evaluate(
    dataset: dict,
    results: list[dict],
    iou_type: str,
    fast: bool,
    max_dets: tuple = (100, 300, 1000),
) -> tuple[Any, float]:
    """Evaluate as mmdet does, with pycocotools or with faster-coco-eval.

    Args:
        dataset: Annotations of :func:`make_results`.
        results: Detections of :func:`make_results`.
        iou_type: ``'bbox'`` or ``'segm'``.
        fast: Whether faster-coco-eval evaluates.
        max_dets: How many detections of an image count, three numbers.

    Returns:
        The evaluation, with ``stats`` and ``eval['precision']``, and the seconds that matching,
        accumulation and summary took.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(dataset, annotations=copies(dataset['annotations']))
        truth.createIndex()
        # mmdet leaves the boxes out too, or the areas of the masks would be those of the boxes.
        found = truth.loadRes(
            copies(results, leave_out='bbox' if iou_type == 'segm' else 'segmentation')
        )
        evaluation = (evaluation_class() if fast else COCOeval)(truth, found, iou_type)
        evaluation.params.maxDets = list(max_dets)
        start = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation, time.perf_counter() - start


def copies(objects: list[dict], leave_out: str = '') -> list[dict]:
    """Copies of annotations or results, for evaluations write into them."""
    return [
        {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in entry.items()
            if key != leave_out
        }
        for entry in objects
    ]
