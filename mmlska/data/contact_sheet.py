"""A sheet of samples with their labels drawn on, to be looked at before the days of training."""

import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .annotation_file import read_annotations
from .coco_values import is_box, is_finite, is_id
from .sources import CocoSource, LabelSource, label_pairs

TILE, COLUMNS, CAPTION = 320, 4, 14
NUM_SAMPLES = 12
OPACITY = 0.5


def contact_sheet(
    source: CocoSource | LabelSource, num_samples: int = NUM_SAMPLES
) -> Image.Image | None:
    """Draw samples of a data set, the same ones every time; None if none can be read.

    Args:
        source: The data set.
        num_samples: How many tiles, each 320 pixels wide.
    """
    samples = coco_samples(source) if isinstance(source, CocoSource) else label_samples(source)
    random.Random(0).shuffle(samples)
    tiles = []
    for sample in samples:
        tile = draw_sample(source, sample)
        tiles += [tile] if tile is not None else []
        if len(tiles) == num_samples:
            break
    return arrange(tiles) if tiles else None


def coco_samples(source: CocoSource) -> list[tuple[str, list[tuple]]]:
    """Images that have annotations, with name and box of each."""
    data, _ = read_annotations(source.path)
    if data is None:
        return []
    names = {
        entry['id']: entry.get('name') for entry in data['categories'] if is_id(entry.get('id'))
    }
    boxes: dict[Any, list[tuple]] = {}
    for entry in data['annotations']:
        if (
            is_box(entry.get('bbox'))
            and all(map(is_finite, entry['bbox']))
            and is_id(entry.get('image_id'))
        ):
            category = entry.get('category_id')
            name = names.get(category, '?') if is_id(category) else '?'
            boxes.setdefault(entry['image_id'], []).append((name, entry['bbox']))
    return [
        (os.path.join(source.image_folder, str(image.get('file_name'))), boxes[image['id']])
        for image in data['images']
        if is_id(image.get('id')) and image['id'] in boxes
    ]


def label_samples(source: LabelSource) -> list[tuple[str, str]]:
    """Images with label maps."""
    return [pair for pair in label_pairs(source) if os.path.isfile(pair[1])]


def draw_sample(source: CocoSource | LabelSource, sample: tuple) -> Image.Image | None:
    """One tile, None if a file cannot be read (the checks have told it)."""
    # Opening a pipe would wait for somebody to write into it.
    if not os.path.isfile(sample[0]):
        return None
    try:
        with Image.open(sample[0]) as opened:
            upright = (
                opened
                if getattr(source, 'ignores_orientation', False)
                else ImageOps.exif_transpose(opened)
            )
            image = upright.convert('RGB')
        if isinstance(source, LabelSource):
            with Image.open(sample[1]) as label:
                image = overlay(image, np.asarray(label))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    scale = min(TILE / image.width, TILE / image.height)
    tile = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    if isinstance(source, CocoSource):
        draw_boxes(tile, sample[1], scale)
    return with_caption(tile, os.path.basename(sample[0]))


def overlay(image: Image.Image, labels: np.ndarray) -> Image.Image:
    """Blend the values of a label map over its image, each in a colour of its own."""
    if labels.ndim != 2 or labels.shape != image.size[::-1]:
        return image
    colours = palette()[labels.astype(np.uint8)]
    blended = (1 - OPACITY) * np.asarray(image) + OPACITY * colours
    return Image.fromarray(blended.astype(np.uint8))


def palette() -> np.ndarray:
    """A colour for each value ``(256, 3)``, the same every time."""
    return np.random.default_rng(0).integers(30, 256, (256, 3)).astype(np.uint8)


def draw_boxes(tile: Image.Image, boxes: Sequence[tuple], scale: float) -> None:
    """Draw boxes with the names of their classes."""
    draw, colours = ImageDraw.Draw(tile), palette()
    for name, (x, y, width, height) in boxes:
        colour = tuple(colours[sum(map(ord, str(name))) % 256].tolist())
        corners = (
            sorted((x * scale, (x + width) * scale)),
            sorted((y * scale, (y + height) * scale)),
        )
        (left, right), (top, bottom) = corners
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        draw.rectangle((left, top, left + 6 * len(str(name)) + 2, top + 11), fill=colour)
        draw.text((left + 1, top), str(name), fill='black')


def with_caption(tile: Image.Image, text: str) -> Image.Image:
    """A square tile with the name of its file below."""
    square = Image.new('RGB', (TILE, TILE + CAPTION), 'white')
    square.paste(tile, ((TILE - tile.width) // 2, (TILE - tile.height) // 2))
    ImageDraw.Draw(square).text((2, TILE + 1), text, fill='black')
    return square


def arrange(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles in rows of four."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new('RGB', (COLUMNS * TILE, rows * (TILE + CAPTION)), 'white')
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % COLUMNS * TILE, index // COLUMNS * (TILE + CAPTION)))
    return sheet
