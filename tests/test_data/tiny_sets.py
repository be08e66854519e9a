"""Good tiny data sets, to be broken in one way each."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mmlska.data import CocoSource, LabelSource

CLASSES = ('screw', 'nut', 'washer')
SIDE = 64


def good_coco() -> dict:
    """Two images of 64 x 64 pixels with two objects each: annotations 11, 12, 21, 22."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=SIDE, height=SIDE) for i in (1, 2)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        annotations=[
            dict(
                id=10 * image + number,
                image_id=image,
                category_id=number,
                bbox=[4 * number, 6, 20, 10],
                area=200,
                iscrowd=0,
                segmentation=[[4 * number, 6, 4 * number + 20, 6, 4 * number + 20, 16]],
            )
            for image in (1, 2)
            for number in (1, 2)
        ],
    )


def save_image(path: Path, size: tuple[int, int] = (SIDE, SIDE), **options) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def coco_source(folder: Path, **changes) -> CocoSource:
    settings = dict(
        key='val_dataloader.dataset',
        path=str(folder / 'a.json'),
        image_folder=str(folder / 'images'),
        classes=CLASSES,
        masks=True,
        evaluated=True,
        ignores_orientation=False,
    )
    return CocoSource(**{**settings, **changes})


def make_coco(folder: Path) -> CocoSource:
    (folder / 'images').mkdir(parents=True)
    for i in (1, 2):
        save_image(folder / 'images' / f'{i}.jpg')
    write(folder, good_coco())
    return coco_source(folder)


def write(folder: Path, data) -> None:
    (folder / 'a.json').write_text(json.dumps(data))


def changed(change) -> dict:
    """A good set after a change to its content, in place."""
    data = good_coco()
    change(data)
    return data


def make_labels(folder: Path) -> LabelSource:
    for name in ('images', 'labels'):
        (folder / name).mkdir(parents=True)
    for i in (1, 2):
        save_image(folder / 'images' / f'{i}.jpg')
        save_label(folder / 'labels' / f'{i}.png', np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3)
    return LabelSource(
        key='val_dataloader.dataset',
        image_folder=str(folder / 'images'),
        label_folder=str(folder / 'labels'),
        image_suffix='.jpg',
        label_suffix='.png',
        list_file='',
        classes=CLASSES,
        reduce_zero_label=False,
        ignore_index=255,
        read_by_mmseg=True,
    )


def save_label(path: Path, values: np.ndarray, dtype=np.uint8, **options) -> None:
    Image.fromarray(values.astype(dtype)).save(path, **options)
