"""Faults inside COCO annotations, found without opening an image.

Written for the 860,000 annotations of COCO: what looks at each of them is a pass in C, and only
where that finds something suspicious each is looked at again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .coco_images import check_categories, check_images, doubled_ids, sizes_by_id
from .coco_masks import check_masks
from .coco_values import NUMBERS, are_numbers, as_array, is_box, is_id, lacking_keys, places
from .faults import ERROR, WARNING, Fault, fault_of

ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
FRACTIONS_SHARE = 0.9  # of boxes smaller than a pixel, from which on they are taken for shares
CORNERS_SHARE = 0.3  # of boxes that leave the image, from which on they are taken for corners


@dataclass(frozen=True)
class Table:
    """Annotations by columns, each as long as ``entries``."""

    entries: Sequence[dict]
    ids: list
    image_ids: list
    category_ids: list
    boxes: list
    areas: list

    def select(self, rows: Iterable[int], detail: str) -> list[tuple[dict, str]]:
        """The annotations of some rows, each with a detail such as ``'area {area}'``."""
        return [(self.entries[row], detail.format_map(self.entries[row])) for row in rows]


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
    images, annotations, categories = data['images'], data['annotations'], data['categories']
    lacking = lacking_keys(annotations, (*ANNOTATION_KEYS, 'iscrowd'))
    if lacking & set(ANNOTATION_KEYS):
        whole = [entry for entry in annotations if set(ANNOTATION_KEYS) <= entry.keys()]
    else:
        whole = annotations
    table = Table(whole, *([entry[key] for entry in whole] for key in ANNOTATION_KEYS))
    sizes = sizes_by_id(images)
    owners = places(table.image_ids, sizes)
    return [
        *check_images(path, images),
        *check_categories(path, categories),
        *check_keys(path, annotations, lacking, evaluated),
        *check_owners(path, table, owners, categories),
        *check_ids(path, table, evaluated),
        *check_boxes(path, table, image_sizes(owners, sizes)),
        *check_masks(path, whole, sizes, masks),
    ]


def check_keys(
    path: str, annotations: Sequence[dict], lacking: set[str], evaluated: bool
) -> list[Fault]:
    """Keys that annotations lack."""

    def without(key: str) -> list[tuple[dict, str]]:
        return [(entry, '') for entry in annotations if key not in entry] if key in lacking else []

    faults = []
    for key in ANNOTATION_KEYS:
        by_fix = '; --fix takes that of the box' if key == 'area' else ''
        message = f'lacks {key!r}: the data set cannot be loaded'
        faults += fault_of(path, without(key), message, f'give every annotation {key!r}{by_fix}')
    effect = ': the evaluation stops at it, after the training' if evaluated else ''
    remedy = 'write iscrowd=0 (1 for a crowd); --fix does'
    level = ERROR if evaluated else WARNING
    faults += fault_of(path, without('iscrowd'), f"lacks 'iscrowd'{effect}", remedy, level)
    return faults + check_crowds(path, annotations, level)


def check_crowds(path: str, annotations: Sequence[dict], level: str) -> list[Fault]:
    """Values of ``iscrowd`` that mean neither yes nor no; ``level`` is that of a missing one."""
    values = [entry.get('iscrowd', 0) for entry in annotations]
    if set(map(type, values)) <= {int, bool} and set(values) <= {0, 1}:
        return []
    odd = [entry for entry in annotations if not is_flag(entry.get('iscrowd', 0))]
    null = [(entry, '') for entry in odd if entry['iscrowd'] is None]
    other = [(entry, f'{entry["iscrowd"]!r}') for entry in odd if entry['iscrowd'] is not None]
    message, remedy = 'has an iscrowd that is neither 0 nor 1', 'write iscrowd=0 (1 for a crowd)'
    return [
        *fault_of(path, null, 'has null for iscrowd', f'{remedy}; --fix does', level),
        *fault_of(path, other, f'{message}: the object may be left out', remedy),
    ]


def is_flag(value: Any) -> bool:
    """Whether a value is 0 or 1, as a number or a truth value."""
    return type(value) in (int, float, bool) and value in (0, 1)


def check_owners(
    path: str, table: Table, owners: np.ndarray, categories: Sequence[dict]
) -> list[Fault]:
    """Annotations of images and categories that are not listed; ``owners`` are places of images."""
    known = (category['id'] for category in categories if is_id(category.get('id')))
    kinds = places(table.category_ids, dict.fromkeys(known))
    faults = []
    for key, noun, found in (
        ('image_id', 'an image', owners),
        ('category_id', 'a category', kinds),
    ):
        strays = table.select(np.flatnonzero(found < 0), f'{key} {{{key}}}')
        message = f'belongs to {noun} that the file does not list'
        faults += fault_of(path, strays, message, 'list it there, or drop it; --fix drops it')
    return faults


def check_ids(path: str, table: Table, evaluated: bool) -> list[Fault]:
    """Ids that are doubled, or that the evaluation cannot read."""
    effect, remedy = 'the data set cannot be loaded', 'number them anew; --fix does'
    kinds = set(map(type, table.ids))
    ids = table.ids if kinds <= {int, float, str} else [key for key in table.ids if is_id(key)]
    faults = doubled_ids(path, ids, 'annotation', effect, remedy)
    if not kinds <= NUMBERS:
        text = [i for i, key in enumerate(table.ids) if type(key) not in NUMBERS]
        message = 'has an id that is no number: the evaluation stops at it'
        level, remedy = ERROR if evaluated else WARNING, 'number them; --fix does'
        faults += fault_of(path, table.select(text, '{id!r}'), message, remedy, level)
    if not evaluated or 0 not in table.ids:
        return faults
    zero = [i for i, key in enumerate(table.ids) if key == 0]
    message = 'has the id 0, which pycocotools takes for no match: AP comes out too low'
    remedy = 'number from 1; --fix does'
    return faults + fault_of(path, table.select(zero, ''), message, remedy, WARNING)


def check_boxes(path: str, table: Table, limits: np.ndarray) -> list[Fault]:
    """Boxes ``[left, top, width, height]`` and areas that no object can have.

    Args:
        path: The file, for messages.
        table: Annotations.
        limits: Width and height of the image of each ``(N, 2)``.
    """
    sides, rows, faults = table.boxes, range(len(table.boxes)), []
    if not are_boxes(sides):
        wrong = [row for row in rows if not is_box(sides[row])]
        message = 'has a box that is not four numbers'
        faults = fault_of(path, table.select(wrong, 'bbox {bbox}'), message, 'write [x, y, w, h]')
        rows = sorted(set(rows) - set(wrong))
        sides = [sides[row] for row in rows]
    if not sides:
        return faults
    rows = np.array(rows)
    boxes = as_array(list(chain.from_iterable(sides))).reshape(-1, 4)
    faults += judge_boxes(path, table, rows, boxes, limits[rows])
    return faults + check_areas(path, table, rows, boxes[:, 2:].min(1))


def are_boxes(boxes: Sequence) -> bool:
    """Whether all values are lists of four numbers."""
    return (
        set(map(type, boxes)) <= {list}
        and set(map(len, boxes)) <= {4}
        and are_numbers(chain.from_iterable(boxes))
    )


def image_sizes(owners: np.ndarray, sizes: dict[Any, tuple]) -> np.ndarray:
    """Width and height of the image of each annotation ``(N, 2)``, infinite where unknown."""
    return np.array([*sizes.values(), (math.inf, math.inf)], dtype=np.float64)[owners]


def judge_boxes(
    path: str, table: Table, rows: np.ndarray, boxes: np.ndarray, limits: np.ndarray
) -> list[Fault]:
    """Faults of the boxes ``(N, 4)`` of some rows, in images of the sizes ``limits`` ``(N, 2)``."""
    finite = np.isfinite(boxes).all(1)
    start, size = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid='ignore'):
        negative = finite & (size < 0).any(1)
        flat = finite & ~negative & (size == 0).any(1)
        sound = finite & ~negative & ~flat
        thin = sound & (size < 1).any(1)
        outside = sound & ((start >= limits) | (start + size <= 0)).any(1)
        beyond = sound & ~outside & ((start + size > limits + 1) | (start < -1)).any(1)

    def of(mask: np.ndarray, message: str, remedy: str, level: str = ERROR) -> list[Fault]:
        return fault_of(path, table.select(rows[mask], 'bbox {bbox}'), message, remedy, level)

    faults = of(~finite, 'has a box that is not finite: the loss becomes NaN', 'draw it again')
    faults += of(negative, 'has a box of negative width or height', 'write [x, y, width, height]')
    faults += of(
        flat,
        'has a box of no area, which mmdet leaves out in silence',
        'drop it; --fix does',
        WARNING,
    )
    fractions = thin.sum() > FRACTIONS_SHARE * max(sound.sum(), 1)
    faults += of(
        thin,
        'has a box less than a pixel wide or high, which mmdet leaves out in silence',
        'write pixels, not shares of the image' if fractions else 'draw it again, or drop it',
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


def check_areas(path: str, table: Table, rows: np.ndarray, sides: np.ndarray) -> list[Fault]:
    """Areas that are no numbers, or hide their box, whose shorter ``sides`` ``(N,)`` are."""
    areas = table.areas
    if not are_numbers(areas):
        areas = [area if type(area) in NUMBERS else math.nan for area in areas]
    numbers = as_array(areas)[rows]
    wrong = ~np.isfinite(numbers)
    hiding = ~wrong & (numbers <= 0) & (sides > 0)
    remedy = 'write the area of the mask, or of the box; --fix does'
    message = 'has no area, for which mmdet leaves it out in silence'

    def of(mask: np.ndarray) -> list[tuple[dict, str]]:
        return table.select(rows[mask], 'area {area}')

    return [
        *fault_of(path, of(wrong), 'has an area that is no number', remedy),
        *fault_of(path, of(hiding), message, remedy, WARNING),
    ]
