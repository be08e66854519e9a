"""Pictures of what models find: pixels, and marks that are drawn over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from mmengine.structures import BaseDataElement, InstanceData

from mmlska.analysis.attention_maps import Tile
from mmlska.analysis.receptive_field import DRAWN_SHARES, FAINTEST, Field

MAX_LABELS = 24
# Segments of a smaller share of the image get no label.
MIN_LABELLED_SHARE = 0.004
COVER = 0.6
BACKGROUND = 'background'
FIELD_COLOURS, GATE_COLOURS = 'inferno', 'viridis'

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Mark:
    """A frame, a label or both, over a picture.

    Attributes:
        place: Left, top, width and height, as shares of the picture. Without width and height it
            is a label in the middle of that place.
        label: Text of the label; '' for a frame alone.
        colour: Red, green and blue, bytes.
        is_dashed: Whether the frame is dashed.
    """

    place: tuple[float, float, float, float]
    label: str
    colour: Colour
    is_dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """Pixels with marks over them.

    Attributes:
        pixels: RGB bytes ``(H, W, 3)``.
        marks: What is drawn over them.
    """

    pixels: np.ndarray
    marks: tuple[Mark, ...] = ()


# Predictions


@dataclass(frozen=True)
class Found:
    """A class, and how much of it was found.

    Attributes:
        name: Name of the class.
        colour: Its colour, None if it is left as it is.
        amount: How much: ``'12 %'`` of the area, or ``'3 ×'``.
    """

    name: str
    colour: Colour | None
    amount: str


def draw_prediction(
    image: np.ndarray, prediction: BaseDataElement, meta: dict, score_thr: float
) -> tuple[Picture, list[Found]]:
    """Draw detections or segments over their image.

    Args:
        image: RGB bytes ``(H, W, 3)``.
        prediction: Of a detector or segmentor.
        meta: Names and colours of the classes, ``classes`` and ``palette``.
        score_thr: Least score of a detection.

    Returns:
        The picture, and the classes that it shows, the most frequent first.

    Raises:
        TypeError: If it is no prediction of these.
    """
    if 'pred_sem_seg' in prediction:
        labels = prediction.pred_sem_seg.data.squeeze(0).cpu().numpy()
        return draw_segments(image, labels, meta)
    if 'pred_instances' in prediction:
        instances = prediction.pred_instances.cpu()
        return draw_instances(image, instances[instances.scores > score_thr], meta)
    raise TypeError(f'no detections and no segments in {", ".join(prediction.keys())}')


def draw_segments(image: np.ndarray, labels: np.ndarray, meta: dict) -> tuple[Picture, list[Found]]:
    """Colour the pixels of each class, but for the background, and name connected ones."""
    pixels, marks, found = image.copy(), [], []
    classes, counts = np.unique(labels, return_counts=True)
    for index in classes[np.argsort(-counts)]:
        mask, name = labels == index, meta['classes'][index]
        colour = None if name == BACKGROUND else colour_of(index, meta)
        found.append(Found(name, colour, share(mask.mean())))
        if colour is not None:
            cover(pixels, mask, colour)
            marks += labels_of(mask, name, colour)
    return Picture(pixels, tuple(marks[:MAX_LABELS])), found


def share(part: float) -> str:
    """A share of the area in words."""
    return f'{part:.1%}' if part >= 0.0005 else 'below 0.1%'


def labels_of(mask: np.ndarray, name: str, colour: Colour) -> list[Mark]:
    """A label in the middle of each connected part of a mask, small ones left out."""
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    height, width = mask.shape
    return [
        Mark(((left + w / 2) / width, (top + h / 2) / height, 0, 0), name, colour)
        for left, top, w, h, area in boxes[1:]
        if area >= MIN_LABELLED_SHARE * mask.size
    ]


def draw_instances(
    image: np.ndarray, instances: InstanceData, meta: dict
) -> tuple[Picture, list[Found]]:
    """Frame each detection, and colour its mask where there is one."""
    pixels, marks = image.copy(), []
    height, width = image.shape[:2]
    for mask, label in zip(instances.get('masks', []), instances.labels.tolist(), strict=False):
        cover(pixels, np.asarray(mask, bool), colour_of(label, meta))
    for box, label, score in zip(
        instances.bboxes.tolist(), instances.labels.tolist(), instances.scores, strict=True
    ):
        left, top, right, bottom = box
        place = left / width, top / height, (right - left) / width, (bottom - top) / height
        name = f'{meta["classes"][label]} {score:.2f}'
        marks.append(Mark(place, name, colour_of(label, meta)))
    labels, counts = np.unique(instances.labels, return_counts=True)
    found = [
        Found(meta['classes'][labels[i]], colour_of(labels[i], meta), f'{counts[i]} ×')
        for i in np.argsort(-counts)
    ]
    return Picture(pixels, tuple(marks)), found


def colour_of(label: int, meta: dict) -> Colour:
    """Colour of a class."""
    return tuple(int(value) for value in meta['palette'][label])


def cover(pixels: np.ndarray, mask: np.ndarray, colour: Colour) -> None:
    """Lay a colour over the pixels of a mask, in place."""
    pixels[mask] = (COVER * np.array(colour) + (1 - COVER) * pixels[mask]).astype(np.uint8)


# Receptive fields and gates


def draw_fields(fields: Sequence[Field]) -> list[Picture]:
    """Fields on one logarithmic scale, with squares of two shares and the theoretical field."""
    highest = max(field.contribution.max() for field in fields)
    norm = LogNorm(highest * FAINTEST, highest, clip=True)
    return [
        Picture(paint(field.contribution, norm, FIELD_COLOURS), marks_of(field)) for field in fields
    ]


def marks_of(field: Field) -> tuple[Mark, ...]:
    """The squares that hold the shares, and the theoretical field where it ends in the image."""
    height, width = field.contribution.shape
    marks = []
    if not field.is_cut_off():
        top, left, bottom, right = field.box
        place = left / width, top / height, (right - left) / width, (bottom - top) / height
        marks.append(Mark(place, '', (255, 255, 255), is_dashed=True))
    for reach in field.reaches(DRAWN_SHARES):
        left = max((width // 2 + 0.5 - reach.side / 2) / width, 0)
        top = max((height // 2 + 0.5 - reach.side / 2) / height, 0)
        place = left, top, min(reach.side / width, 1 - left), min(reach.side / height, 1 - top)
        marks.append(Mark(place, f'{reach.share:.0%}', (88, 199, 240)))
    return tuple(marks)


def draw_gate(tile: Tile) -> Picture:
    """A map in colours from its smallest value to its largest; one value a channel as bars."""
    values = bars(tile.values) if tile.values.ndim == 1 else tile.values
    low, high = values.min(), values.max()
    return Picture(paint(values, Normalize(low, max(high, low + 1e-12)), GATE_COLOURS))


def bars(values: np.ndarray, height: int = 96) -> np.ndarray:
    """Values of channels as columns, ``(height, C)``: 1 from the foot up to the value, then 0."""
    share = values / max(values.max(), 1e-12)
    return (np.arange(height, 0, -1)[:, None] <= share * height).astype(np.float32)


def paint(values: np.ndarray, norm: Normalize, colours: str) -> np.ndarray:
    """A map as RGB bytes."""
    return (colormaps[colours](norm(values))[..., :3] * 255).astype(np.uint8)
