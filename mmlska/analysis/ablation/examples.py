"""The best and the worst prediction of a trained cell, beside the truth."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement, InstanceData

from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor

# Images that are looked at, the least score of a detection, and the width of a picture in pixels.
NUMBER, SCORE, WIDTH = 60, 0.3, 420
OVERLAP = 0.5
LEAST_NAMED = 200


@dataclass(frozen=True)
class Example:
    """A prediction beside the truth.

    Attributes:
        title: What it is.
        picture: A PNG file, as a data address.
    """

    title: str
    picture: str


def best_and_worst(config: Path, run: Path, folder: Path) -> list[Example]:
    """Draw the best and the worst prediction on the first images of the validation set.

    Args:
        config: Config of the cell.
        run: Work dir of a finished training.
        folder: Where the pictures go.
    """
    checkpoint = (run / 'last_checkpoint').read_text(encoding='locale').strip()
    predictor = Predictor(config, checkpoint)
    dataset = DATASETS.build(load_config(config).val_dataloader.dataset)
    samples = []
    for index in range(min(NUMBER, len(dataset))):
        with torch.no_grad():
            sample = predictor.model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
        samples.append((score(sample), index, sample))
    samples.sort(key=lambda entry: entry[:2])
    chosen = {'worst': samples[0], 'best': samples[-1]}
    return [
        Example(
            f'{title}: {100 * value:.0f} %, {Path(sample.img_path).name}',
            draw(predictor, sample, folder / f'{title}.png'),
        )
        for title, (value, _, sample) in chosen.items()
    ]


def score(sample: BaseDataElement) -> float:
    """How good a prediction is, 0 to 1: mean IoU of the classes, or F1 of the boxes."""
    if 'pred_instances' in sample:
        return f1_of_boxes(sample.gt_instances, sample.pred_instances)
    truth, found = sample.gt_sem_seg.data.flatten(), sample.pred_sem_seg.data.flatten()
    return mean_iou(truth.numpy(), found.numpy())


def mean_iou(truth: np.ndarray, found: np.ndarray, ignored: int = 255) -> float:
    """Mean over the classes that occur of what truth and prediction share."""
    valid = truth != ignored
    truth, found = truth[valid], found[valid]
    classes = np.union1d(truth, found)
    ratios = [
        np.sum((truth == c) & (found == c)) / np.sum((truth == c) | (found == c)) for c in classes
    ]
    return float(np.mean(ratios)) if ratios else 1.0


def f1_of_boxes(truth: InstanceData, found: InstanceData) -> float:
    """Harmonic mean of precision and recall; a box is right if it overlaps by half.

    Detections are matched in the order of their scores, each to one box of its class.
    """
    # Segmentation does without mmdet.
    from mmdet.structures.bbox import bbox_overlaps, get_box_tensor

    found = found[found.scores >= SCORE]
    found = found[found.scores.argsort(descending=True)]
    if not len(truth) or not len(found):
        return float(len(truth) == len(found))
    overlaps = bbox_overlaps(get_box_tensor(found.bboxes), get_box_tensor(truth.bboxes))
    overlaps[found.labels[:, None] != truth.labels[None]] = 0
    matched = 0
    for row in overlaps:
        value, column = row.max(0)
        if value >= OVERLAP:
            matched += 1
            overlaps[:, column] = 0
    return 2 * matched / (len(truth) + len(found))


def draw(predictor: Predictor, sample: BaseDataElement, path: Path) -> str:
    """Draw truth and prediction side by side; returns the picture as a data address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = mmcv.bgr2rgb(mmcv.imread(sample.img_path))
    # On a small picture the names of segments would hide them.
    named = dict(with_labels=min(image.shape[:2]) >= LEAST_NAMED)
    options = dict(pred_score_thr=SCORE) if predictor.is_detector else named
    predictor.visualizer.add_datasample(
        path.stem, image, sample, draw_gt=True, out_file=str(path), **options
    )
    return data_address(shrink(cv2.imread(str(path))))


def shrink(picture: np.ndarray) -> np.ndarray:
    """A picture of the width of all pictures."""
    height = round(picture.shape[0] * WIDTH / picture.shape[1])
    smaller = picture.shape[1] > WIDTH
    method = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    return cv2.resize(picture, (WIDTH, height), interpolation=method)


def data_address(picture: np.ndarray | bytes) -> str:
    """A picture inside a page: the address that holds it as PNG."""
    content = picture if isinstance(picture, bytes) else cv2.imencode('.png', picture)[1].tobytes()
    return f'data:image/png;base64,{base64.b64encode(content).decode()}'


def gallery(examples: Sequence[Example]) -> str:
    """HTML of examples side by side."""
    figures = [
        f'<figure><img src="{example.picture}" alt=""><figcaption>{example.title}</figcaption>'
        '</figure>'
        for example in examples
    ]
    return f'<div class="gallery">{"".join(figures)}</div>'
