"""Data that a config names, made where the config looks for it: noise with a few objects on it."""

import json
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

SIDE = 96
# Corners of the objects of every image, as x, y, width and height.
BOXES = ((8, 12, 40, 30), (30, 40, 50, 44))


def innermost(dataset: ConfigDict) -> ConfigDict:
    """The data set that reads images, inside those that mix or repeat them."""
    return innermost(dataset.dataset) if 'dataset' in dataset else dataset


def make_data(cfg: Config, images: int = 2) -> None:
    """Make the images and annotations of all splits, below the current folder."""
    makers = dict(mmseg=make_label_maps, mmrotate=make_turned_boxes)
    make = makers.get(cfg.default_scope, make_instances)
    for split in ('train', 'val', 'test'):
        if f'{split}_dataloader' in cfg:
            make(innermost(cfg[f'{split}_dataloader'].dataset), cfg.default_scope, images)


def class_of(dataset: ConfigDict, scope: str) -> type:
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(dataset.type)


def names_of(dataset: ConfigDict, scope: str) -> tuple[str, ...]:
    """The classes of a data set: its own, or those that its type stands for."""
    own = dataset.get('metainfo') or class_of(dataset, scope).METAINFO
    return own['classes']


def write_noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert cv2.imwrite(str(path), noise), path


def make_instances(dataset: ConfigDict, scope: str, images: int) -> None:
    """Annotations in COCO's format, with a box and a polygon for each object."""
    root, names, numbers = Path(dataset.data_root), names_of(dataset, scope), count()
    records = [dict(id=i, file_name=f'{i}.jpg', height=SIDE, width=SIDE) for i in range(images)]
    objects = [
        dict(
            id=next(numbers),
            image_id=record['id'],
            category_id=kind % len(names),
            bbox=[x, y, w, h],
            area=w * h,
            iscrowd=0,
            segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
        )
        for record in records
        for kind, (x, y, w, h) in enumerate(BOXES)
    ]
    for record in records:
        write_noise(root / dataset.data_prefix.img / record['file_name'])
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    path = root / dataset.ann_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=records, annotations=objects, categories=categories)))


def make_turned_boxes(dataset: ConfigDict, scope: str, images: int) -> None:
    """Annotations in DOTA's format: a file an image, with four corners an object, turned by 30°."""
    root, names = Path(dataset.data_root), names_of(dataset, scope)
    lines = []
    for kind, (x, y, w, h) in enumerate(BOXES):
        corners = cv2.boxPoints(((x + w / 2, y + h / 2), (w, h / 2), 30))
        lines.append(f'{" ".join(f"{v:.1f}" for v in corners.ravel())} {names[kind]} 0')
    for number in range(images):
        write_noise(root / dataset.data_prefix.img_path / f'{number}.png')
        path = root / dataset.ann_file / f'{number}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(lines))


def make_label_maps(dataset: ConfigDict, scope: str, images: int) -> None:
    """One class index for each pixel; no object is of class 0, which a data set may leave out."""
    root = Path(dataset.data_root)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for kind, (x, y, w, h) in enumerate(BOXES, start=1):
        labels[y : y + h, x : x + w] = min(kind, len(names_of(dataset, scope)) - 1)
    for number in range(images):
        suffix = dataset.get('img_suffix', '.jpg')
        write_noise(root / dataset.data_prefix.img_path / f'{number}{suffix}')
        path = root / dataset.data_prefix.seg_map_path / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), labels), path
