"""A picture of digit scenes: the truth beside what a trained model finds."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData

from mmlska.datasets import DIGITS
from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor, read_image

MAX_DRAWN = 8
MIN_DRAWN_SCORE = 0.5
# Segments of fewer pixels get no label in the picture.
MIN_LABELLED_AREA = 40


def draw_predictions(config: Path, checkpoint: Path, picture: Path) -> None:
    """Draw validation scenes in pairs: the truth on the left, the prediction on the right."""
    predictor = Predictor(config, str(checkpoint))
    dataset = DATASETS.build(load_config(config).test_dataloader.dataset)
    scenes = range(min(MAX_DRAWN, len(dataset)))
    rows = -(-len(scenes) // 2)
    figure = Figure(figsize=(12, 3.2 * rows), layout='constrained')
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (left, right) in zip(scenes, axes, strict=False):
        truth = dataset[index]['data_samples']
        prediction = predictor(truth.img_path)
        for axis, title in ((left, 'truth'), (right, 'prediction')):
            axis.imshow(read_image(truth.img_path))
            axis.set_title(title)
        if predictor.is_detector:
            draw_instances(left, truth.gt_instances)
            draw_instances(right, confident(prediction.pred_instances))
        else:
            draw_segments(left, truth.gt_sem_seg)
            draw_segments(right, prediction.pred_sem_seg)
    figure.savefig(picture, dpi=100)


def confident(instances: InstanceData) -> InstanceData:
    """Keep the detections that are worth drawing."""
    return instances[instances.scores > MIN_DRAWN_SCORE]


def draw_instances(axis: Axes, instances: InstanceData) -> None:
    """Draw boxes, masks where there are any, and what each digit is taken for."""
    # Segmentation does without mmdet.
    from mmdet.structures.bbox import get_box_tensor
    from mmdet.structures.mask import BitmapMasks

    masks = instances.get('masks', [])
    if isinstance(masks, BitmapMasks):
        masks = masks.masks
    for label, mask in zip(instances.labels, masks, strict=False):
        lay_over(axis, np.asarray(mask, bool), int(label))
    for label, box in zip(instances.labels, get_box_tensor(instances.bboxes), strict=True):
        left, top, right, bottom = box.tolist()
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top)
        frame.set(fill=False, edgecolor=colour_of(int(label)), linewidth=1.5)
        axis.add_patch(frame)
        write_digit(axis, left, top, int(label))


def draw_segments(axis: Axes, segments: PixelData) -> None:
    """Draw the pixels of each digit, and what connected pixels are taken for."""
    labels = segments.data.squeeze(0).numpy()
    for digit in range(len(DIGITS)):
        mask = labels == digit + 1
        lay_over(axis, mask, digit)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        for left, top, _, _, area in boxes[1:]:
            if area >= MIN_LABELLED_AREA:
                write_digit(axis, left, top, digit)


def colour_of(digit: int) -> tuple[float, ...]:
    """Colour of a digit, red, green and blue from 0 to 1."""
    return colormaps['tab10'](digit)[:3]


def lay_over(axis: Axes, mask: np.ndarray, digit: int) -> None:
    """Colour the pixels of a mask."""
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = (*colour_of(digit), 0.8)
    axis.imshow(layer)


def write_digit(axis: Axes, left: float, top: float, digit: int) -> None:
    """Write which digit it is beside the upper left corner of a box."""
    frame = {'facecolor': colour_of(digit), 'edgecolor': 'none', 'pad': 1.5}
    axis.text(left, top, DIGITS[digit], color='white', weight='bold', va='center', bbox=frame)
