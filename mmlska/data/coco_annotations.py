"""Faults inside COCO annotations, found without opening an image.

Written for the 860,000 annotations of COCO: what looks at each of them is one pass in C, and only
what is suspicious is looked at again.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .faults import ERROR, WARNING, Fault

IMAGE_KEYS = ('id', 'file_name', 'height', 'width')
ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
NUMBERS = {int, float}
# pycocotools draws a polygon at five times its size with 32-bit numbers: from 1e8 on it crashes.
LARGEST_COORDINATE = 1e6
CORNERS_SHARE = 0.3  # of boxes that leave the image, from which on they are taken for corners


def check_annotations(
    path: str, data: dict[str, Any], masks: bool = False, evaluated: bool = True
) -> list[Fault]:
    """Check images and annotations of a file.

    Args:
        path: The file, for messages.
        data: Its content, with lists of objects.
        masks: Whether the run reads the masks.
        evaluated: Whether the file is the truth of an evaluation.
    """
    images, annotations = data['images'], data['annotations']
    faults = [*check_images(path, images), *check_keys(path, annotations, evaluated)]
    keys = set(ANNOTATION_KEYS)
    whole = [entry for entry in annotations if keys <= entry.keys()]
    sizes = {
        image['id']: (image.get('width'), image.get('height'))
        for image in images
        if is_id(image.get('id'))
    }
    faults += check_ids(path, whole, sizes, data['categories'], evaluated)
    faults += check_boxes(path, whole, sizes)
    faults += check_masks(path, whole, sizes, ERROR if masks else WARNING)
    if masks:
        bare = [(entry, '') for entry in whole if not entry.get('segmentation')]
        message = "has no 'segmentation', and the config reads masks"
        faults += fault_of(path, bare, message, 'draw it, or leave the box out')
    return faults


def is_id(value: Any) -> bool:
    """Whether a value can be an id."""
    return type(value) in (int, float, str)


def places(
    path: str,
    entries: Iterable[dict],
    find: Callable[[dict], str | None],
    message: str,
    remedy: str,
    level: str = ERROR,
    noun: str = 'annotation',
) -> list[Fault]:
    """A fault with all entries for which ``find`` returns a detail (maybe empty), none if none."""
    found = [(entry, detail) for entry in entries if (detail := find(entry)) is not None]
    return fault_of(path, found, message, remedy, level, noun)


def fault_of(
    path: str,
    found: Sequence[tuple[dict, str]],
    message: str,
    remedy: str,
    level: str = ERROR,
    noun: str = 'annotation',
) -> list[Fault]:
    """A fault of entries with their details."""
    if not found:
        return []
    where = (
        f'{noun} {entry.get("id", "without id")}' + (f' ({detail})' if detail else '')
        for entry, detail in found
    )
    return [Fault(path, message, remedy, level, tuple(where))]


def check_images(path: str, images: Sequence[dict]) -> list[Fault]:
    """Faults of the list of images."""
    faults = [] if images else [Fault(path, 'lists no image', 'export it again')]
    for key in IMAGE_KEYS:
        faults += places(
            path,
            images,
            lambda entry, key=key: None if key in entry else entry.get('file_name', ''),
            f'lacks {key!r}: the data set cannot be loaded',
            f'give every image {key!r}',
            noun='image',
        )
    faults += places(
        path,
        images,
        lambda entry: None if is_size(entry) else f'{entry.get("width")} x {entry.get("height")}',
        'has no true size',
        'write width and height in pixels',
        noun='image',
    )
    faults += doubled(
        path,
        images,
        'image',
        'the annotations of both go to the last one',
        'number the images anew, and image_id with them',
    )
    names = Counter(image.get('file_name') for image in images)
    faults += places(
        path,
        images,
        lambda entry: entry.get('file_name') if names[entry.get('file_name')] > 1 else None,
        'is listed more than once',
        'list each file once',
        WARNING,
        'image',
    )
    return faults


def is_size(image: dict) -> bool:
    """Whether an image has a width and a height above zero."""
    sides = (image.get('width', 1), image.get('height', 1))
    return all(type(side) in NUMBERS and 0 < side < math.inf for side in sides)


def doubled(path: str, entries: Sequence[dict], noun: str, effect: str, remedy: str) -> list[Fault]:
    """Entries that share an id."""
    ids = [entry['id'] for entry in entries if is_id(entry.get('id'))]
    if len(set(ids)) == len(ids):
        return []
    counts = Counter(ids)
    twice = tuple(f'{noun} {key} ({count} times)' for key, count in counts.items() if count > 1)
    return [Fault(path, f'the ids of {noun}s are not unique: {effect}', remedy, where=twice)]


def check_keys(path: str, annotations: Sequence[dict], evaluated: bool) -> list[Fault]:
    """Keys that annotations lack."""
    faults = []
    for key in ANNOTATION_KEYS:
        lacking = [(entry, '') for entry in annotations if key not in entry]
        by_fix = '; --fix takes that of the box' if key == 'area' else ''
        message = f'lacks {key!r}: the data set cannot be loaded'
        faults += fault_of(path, lacking, message, f'give every annotation {key!r}{by_fix}')
    lacking = [(entry, '') for entry in annotations if 'iscrowd' not in entry]
    effect = ': the evaluation stops at it, after the training' if evaluated else ''
    remedy = 'write iscrowd=0 (1 for a crowd); --fix does'
    level = ERROR if evaluated else WARNING
    return faults + fault_of(path, lacking, f"lacks 'iscrowd'{effect}", remedy, level)


def check_ids(
    path: str,
    annotations: Sequence[dict],
    sizes: dict[Any, tuple],
    categories: Sequence[dict],
    evaluated: bool,
) -> list[Fault]:
    """Ids that are doubled, no ids, or belong to nothing."""
    effect = 'the data set cannot be loaded'
    faults = doubled(path, annotations, 'annotation', effect, 'number them anew; --fix does')
    faults += doubled(path, categories, 'category', 'one of them is lost', 'number them anew')
    known = {category['id'] for category in categories if is_id(category.get('id'))}
    for key, noun, ids in (('image_id', 'an image', sizes), ('category_id', 'a category', known)):
        strays = [
            (entry, f'{key} {entry[key]}')
            for entry in annotations
            if not (is_id(entry[key]) and entry[key] in ids)
        ]
        message = f'belongs to {noun} that the file does not list'
        faults += fault_of(path, strays, message, 'list it there, or drop it; --fix drops it')
    text = [(entry, repr(entry['id'])) for entry in annotations if type(entry['id']) not in NUMBERS]
    message = 'has an id that is no number: the evaluation stops at it'
    level = ERROR if evaluated else WARNING
    faults += fault_of(path, text, message, 'number them; --fix does', level)
    zero = [(entry, '') for entry in annotations if entry['id'] == 0] if evaluated else []
    message = 'has the id 0, which pycocotools takes for no match: AP comes out too low'
    return faults + fault_of(path, zero, message, 'number from 1; --fix does', WARNING)


def check_boxes(path: str, annotations: Sequence[dict], sizes: dict[Any, tuple]) -> list[Fault]:
    """Boxes ``[left, top, width, height]`` that no object can have."""
    good = list(range(len(annotations)))
    types = set()
    for entry in annotations:
        box = entry['bbox']
        types.update(map(type, box) if type(box) is list and len(box) == 4 else (None,))
    faults = []
    if not types <= NUMBERS:
        wrong = [i for i in good if not is_box(annotations[i]['bbox'])]
        detail = [(annotations[i], f'bbox {annotations[i]["bbox"]}') for i in wrong]
        faults += fault_of(path, detail, 'has a box that is not four numbers', 'write [x, y, w, h]')
        good = sorted(set(good) - set(wrong))
    entries = [annotations[i] for i in good]
    if not entries:
        return faults
    boxes = np.array([entry['bbox'] for entry in entries], dtype=np.float64)
    limits = image_sizes(entries, sizes)
    return [*faults, *judge_boxes(path, entries, boxes, limits), *check_areas(path, entries)]


def is_box(box: Any) -> bool:
    """Whether a value is a list of four numbers."""
    return type(box) is list and len(box) == 4 and set(map(type, box)) <= NUMBERS


def image_sizes(entries: Sequence[dict], sizes: dict[Any, tuple]) -> np.ndarray:
    """Width and height of the image of each annotation ``(N, 2)``, infinite where unknown."""
    endless = (math.inf, math.inf)
    found = [
        sizes.get(entry['image_id'], endless) if is_id(entry['image_id']) else endless
        for entry in entries
    ]
    if not set(map(type, chain.from_iterable(found))) <= NUMBERS:
        found = [pair if set(map(type, pair)) <= NUMBERS else endless for pair in found]
    return np.array(found, dtype=np.float64)


def judge_boxes(
    path: str, entries: Sequence[dict], boxes: np.ndarray, limits: np.ndarray
) -> list[Fault]:
    """Faults of boxes ``(N, 4)`` in images of the sizes ``limits`` ``(N, 2)``."""
    finite = np.isfinite(boxes).all(1)
    start, size = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid='ignore'):
        negative = finite & (size < 0).any(1)
        flat = finite & ~negative & (size == 0).any(1)
        sound = finite & ~negative & ~flat
        outside = sound & ((start >= limits) | (start + size <= 0)).any(1)
        beyond = sound & ~outside & ((start + size > limits + 1) | (start < -1)).any(1)

    def of(mask: np.ndarray, message: str, remedy: str, level: str = ERROR) -> list[Fault]:
        found = [(entries[i], f'bbox {entries[i]["bbox"]}') for i in np.flatnonzero(mask)]
        return fault_of(path, found, message, remedy, level)

    faults = of(~finite, 'has a box that is not finite: the loss becomes NaN', 'draw it again')
    faults += of(negative, 'has a box of negative width or height', 'write [x, y, width, height]')
    faults += of(
        flat,
        'has a box of no area, which mmdet leaves out in silence',
        'drop it; --fix does',
        WARNING,
    )
    faults += of(outside, 'has a box outside its image', 'draw it again, or drop it')
    ordered = sound & (size > start).all(1)
    leaving = outside | beyond
    if leaving.sum() > CORNERS_SHARE * max(sound.sum(), 1) and ordered.sum() > 0.95 * sound.sum():
        message = (
            f'{leaving.sum()} of {len(boxes)} boxes leave their image: they look like corners '
            '[x1, y1, x2, y2], where COCO has [x, y, width, height]'
        )
        faults.append(Fault(path, message, 'subtract x1, y1 from x2, y2', WARNING))
    else:
        faults += of(
            beyond,
            'has a box that leaves its image by more than a pixel',
            'cut it; --fix does',
            WARNING,
        )
    return faults


def check_areas(path: str, entries: Sequence[dict]) -> list[Fault]:
    """Areas that are no numbers, or hide their box."""
    wrong, hiding = [], []
    for entry in entries:
        area = entry['area']
        if type(area) not in NUMBERS or not math.isfinite(area):
            wrong.append((entry, f'area {area}'))
        elif area <= 0 < min(entry['bbox'][2:]):
            hiding.append((entry, f'area {area}'))
    remedy = 'write the area of the mask, or of the box; --fix does'
    message = 'has no area, for which mmdet leaves it out in silence'
    return [
        *fault_of(path, wrong, 'has an area that is no number', remedy),
        *fault_of(path, hiding, message, remedy, WARNING),
    ]


def check_masks(
    path: str, annotations: Sequence[dict], sizes: dict[Any, tuple], level: str
) -> list[Fault]:
    """Polygons and run lengths that pycocotools stops, crashes or never ends at."""
    found: dict[tuple[str, str], list[tuple[dict, str]]] = {}
    for entry in annotations:
        segmentation = entry.get('segmentation')
        if not segmentation:
            continue
        if type(segmentation) is list:
            problem = polygons_problem(segmentation)
        else:
            image_id = entry['image_id']
            size = sizes.get(image_id) if is_id(image_id) else None
            problem = run_lengths_problem(segmentation, size)
        if problem:
            found.setdefault(problem[:2], []).append((entry, problem[2]))
    return [
        fault
        for (message, remedy), entries in found.items()
        for fault in fault_of(path, entries, message, remedy, level)
    ]


def polygons_problem(polygons: list) -> tuple[str, str, str] | None:
    """Message, remedy and detail of the first polygon that is none, None if all are fine."""
    for polygon in polygons:
        try:
            total, most, least, count = sum(polygon), max(polygon), min(polygon), len(polygon)
        except (TypeError, ValueError):
            count = len(polygon) if isinstance(polygon, list) else 0
            if count or not isinstance(polygon, list):
                return ('has a polygon that is no list of numbers', 'write [[x, y, x, y, ...]]', '')
        if count < 6:
            return (
                'has a polygon of fewer than six values: the evaluation of masks stops at it',
                'draw three points or more; --fix drops it where others remain',
                f'{count} values',
            )
        if count % 2:
            return (
                'has a polygon of an odd number of values',
                'write pairs of x and y',
                f'{count} values',
            )
        if not math.isfinite(total):
            return (
                'has a polygon with NaN or infinity: pycocotools takes all memory for it',
                'draw it again',
                '',
            )
        if most > LARGEST_COORDINATE or least < -LARGEST_COORDINATE:
            return (
                'has a polygon far outside any image: pycocotools crashes at it',
                'draw it again',
                f'a coordinate of {most if most > -least else least:g}',
            )
    return None


def run_lengths_problem(mask: Any, size: tuple | None) -> tuple[str, str, str] | None:
    """The same of a mask by run lengths, in an image of ``size`` (width, height)."""
    if not isinstance(mask, dict) or not {'counts', 'size'} <= mask.keys():
        return ('has a mask that is neither polygons nor run lengths', 'write size and counts', '')
    shape, counts = mask['size'], mask['counts']
    if size is not None and shape != [size[1], size[0]]:
        return (
            'has run lengths of another size than its image: the evaluation of masks stops at it',
            'encode the mask at the size of the image',
            f'size {shape}, the image has {[size[1], size[0]]}',
        )
    if isinstance(counts, list) and sum(counts) != shape[0] * shape[1]:
        return (
            'has run lengths that do not fill its image',
            'encode the mask again',
            f'{sum(counts)} pixels of {shape[0] * shape[1]}',
        )
    return None
