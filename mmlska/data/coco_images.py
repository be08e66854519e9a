"""Faults of the lists of images and categories of a COCO file."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .coco_values import NUMBERS, as_float, is_id, lacking_keys
from .faults import WARNING, Fault, fault_of

IMAGE_KEYS = ('id', 'file_name', 'height', 'width')


def check_images(path: str, images: Sequence[dict]) -> list[Fault]:
    """Faults of the list of images.

    Args:
        path: The file, for messages.
        images: Its images.
    """
    faults = [] if images else [Fault(path, 'lists no image', 'export it again')]
    for key in sorted(lacking_keys(images, IMAGE_KEYS)):
        bare = [(image, image.get('file_name', '')) for image in images if key not in image]
        message = f'lacks {key!r}: the data set cannot be loaded'
        faults += fault_of(path, bare, message, f'give every image {key!r}', noun='image')
    sizeless = [
        (image, f'{image.get("width")} x {image.get("height")}')
        for image in images
        if not (is_side(image.get('width', 1)) and is_side(image.get('height', 1)))
    ]
    remedy = 'write width and height in pixels'
    faults += fault_of(path, sizeless, 'has no true size', remedy, noun='image')
    return [*faults, *check_image_ids(path, images), *check_file_names(path, images)]


def check_image_ids(path: str, images: Sequence[dict]) -> list[Fault]:
    """Images whose id is none, or that of another."""
    remedy = 'number the images anew, and image_id with them'
    wrong = [(image, f'id {image["id"]!r}') for image in images if not is_id(image.get('id', 0))]
    message = 'has an id that is neither number nor text'
    effect = 'the annotations of both go to the last one'
    return [
        *fault_of(path, wrong, message, remedy, noun='image'),
        *doubled(path, images, 'image', effect, remedy),
    ]


def check_file_names(path: str, images: Sequence[dict]) -> list[Fault]:
    """Images whose file name is none, or that of another."""
    names = [image.get('file_name', '') for image in images]
    wrong = [
        (image, f'{name!r}')
        for image, name in zip(images, names, strict=True)
        if type(name) is not str
    ]
    message, remedy = 'has a file_name that is no text', 'write the path below the image folder'
    faults = fault_of(path, wrong, message, remedy, noun='image')
    if wrong or len(set(names)) == len(names):
        return faults
    counts = Counter(names)
    twice = [(image, name) for image, name in zip(images, names, strict=True) if counts[name] > 1]
    message, remedy = 'is listed more than once', 'list each file once'
    return faults + fault_of(path, twice, message, remedy, WARNING, 'image')


def is_side(value: Any) -> bool:
    """Whether a value is a width or a height above zero."""
    return type(value) in NUMBERS and 0 < as_float(value) < math.inf


def sizes_by_id(images: Sequence[dict]) -> dict[Any, tuple]:
    """Width and height of each image of a true size; ``(inf, inf)`` of the others."""
    return {
        image['id']: (
            (image['width'], image['height'])
            if is_side(image.get('width')) and is_side(image.get('height'))
            else (math.inf, math.inf)
        )
        for image in images
        if is_id(image.get('id'))
    }


def check_categories(path: str, categories: Sequence[dict]) -> list[Fault]:
    """Categories without an id, or with the same one; their names see :mod:`.class_names`."""
    bare = [
        (one, f'{one.get("name")!r}') for one in categories if type(one.get('id')) not in NUMBERS
    ]
    return [
        *fault_of(path, bare, 'has no number as its id', 'number them', noun='category'),
        *doubled(path, categories, 'category', 'one of them is lost', 'number them anew'),
    ]


def doubled(path: str, entries: Sequence[dict], noun: str, effect: str, remedy: str) -> list[Fault]:
    """Entries that share an id."""
    ids = [entry['id'] for entry in entries if is_id(entry.get('id'))]
    return doubled_ids(path, ids, noun, effect, remedy)


def doubled_ids(path: str, ids: Sequence, noun: str, effect: str, remedy: str) -> list[Fault]:
    """Ids that stand more than once among some, of what a noun says."""
    if len(set(ids)) == len(ids):
        return []
    counts = Counter(ids)
    twice = tuple(f'{noun} {key} ({count} times)' for key, count in counts.items() if count > 1)
    many = f'{noun}s'.replace('ys', 'ies')
    return [Fault(path, f'the ids of {many} are not unique: {effect}', remedy, where=twice)]
