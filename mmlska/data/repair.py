"""Safe repairs of an annotation file: those that change nothing that a run would learn from.

Boxes and masks are never drawn anew; what only a person can know, such as a wrong name or a mask of
another size, stays as it is and stays a fault.
"""

import copy
from collections.abc import Callable
from typing import Any

from .coco_images import sizes_by_id
from .coco_values import NUMBERS, is_box, is_finite, is_id


def repair(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Mend a copy of the content of an annotation file.

    Args:
        data: What :func:`mmlska.data.read_annotations` returns.

    Returns:
        The mended content, and a line for each repair with its annotations.
    """
    data = copy.deepcopy(data)
    lines = []
    for step in (
        drop_strays,
        drop_flat,
        cut_boxes,
        fill_areas,
        drop_short_polygons,
        fill_crowds,
        number,
    ):
        lines += step(data)
    return data, lines


def said(entries: list[dict], what: str) -> list[str]:
    """The line of a repair, none if nothing was to be done."""
    if not entries:
        return []
    ids = ', '.join(str(entry.get('id')) for entry in entries)
    return [f'{what} {len(entries)} annotations: {ids}']


def drop(data: dict[str, Any], is_bad: Callable[[dict], bool], why: str) -> list[str]:
    """Leave annotations out."""
    bad = [entry for entry in data['annotations'] if is_bad(entry)]
    kept = {id(entry) for entry in bad}
    data['annotations'] = [entry for entry in data['annotations'] if id(entry) not in kept]
    return said(bad, f'dropped, for {why},')


def drop_strays(data: dict[str, Any]) -> list[str]:
    """Drop annotations of images and categories that the file does not list; no run reads them."""
    lines = []
    for kind, noun in (('images', 'image_id'), ('categories', 'category_id')):
        known = {entry['id'] for entry in data[kind] if is_id(entry.get('id'))}
        lines += drop(
            data,
            lambda entry, noun=noun, known=known: (
                not (is_id(entry.get(noun)) and entry[noun] in known)
            ),
            f'their {noun} is not listed',
        )
    return lines


def drop_flat(data: dict[str, Any]) -> list[str]:
    """Drop boxes of no area, as mmdet does."""
    return drop(
        data,
        lambda entry: is_box(entry.get('bbox')) and 0 in entry['bbox'][2:],
        'their boxes have no area',
    )


def cut_boxes(data: dict[str, Any]) -> list[str]:
    """Cut boxes at the border of their image, unless nothing would be left."""
    sizes = sizes_by_id(data['images'])
    changed = []
    for entry in data['annotations']:
        box, limits = entry.get('bbox'), sizes.get(entry['image_id'])
        if not is_box(box) or limits is None or not all(map(is_finite, box)):
            continue
        start = [max(value, 0) for value in box[:2]]
        end = [
            min(at + size, limit) for at, size, limit in zip(box[:2], box[2:], limits, strict=True)
        ]
        cut = [*start, *(stop - at for at, stop in zip(start, end, strict=True))]
        if (
            min(box[2:]) > 0
            and min(cut[2:]) > 0
            and max(abs(a - b) for a, b in zip(box, cut, strict=True)) > 1
        ):
            entry['bbox'] = cut
            changed.append(entry)
    return said(changed, 'cut the boxes, at the border of the image, of')


def fill_areas(data: dict[str, Any]) -> list[str]:
    """Give annotations without a true area that of their box."""
    changed = []
    for entry in data['annotations']:
        area, box = entry.get('area'), entry.get('bbox')
        if type(area) in NUMBERS and is_finite(area) and area > 0:
            continue
        if is_box(box) and all(map(is_finite, box)) and min(box[2:]) > 0:
            entry['area'] = box[2] * box[3]
            changed.append(entry)
    return said(changed, 'took the area of the box for')


def drop_short_polygons(data: dict[str, Any]) -> list[str]:
    """Drop polygons that are none, where others of the same object remain."""
    changed = []
    for entry in data['annotations']:
        polygons = entry.get('segmentation')
        if not isinstance(polygons, list) or not all(isinstance(item, list) for item in polygons):
            continue
        kept = [polygon for polygon in polygons if len(polygon) >= 6 and not len(polygon) % 2]
        if kept and len(kept) < len(polygons):
            entry['segmentation'] = kept
            changed.append(entry)
    return said(changed, 'dropped polygons that are none of')


def fill_crowds(data: dict[str, Any]) -> list[str]:
    """Say that annotations that do not tell are no crowds."""
    changed = [entry for entry in data['annotations'] if entry.get('iscrowd') is None]
    for entry in changed:
        entry['iscrowd'] = 0
    return said(changed, 'wrote iscrowd=0 into')


def number(data: dict[str, Any]) -> list[str]:
    """Number all annotations from 1 where an id is doubled, zero or no whole number."""
    ids = [entry.get('id') for entry in data['annotations']]
    if all(type(key) is int and key for key in ids) and len(set(ids)) == len(ids):
        return []
    for new, entry in enumerate(data['annotations'], 1):
        entry['id'] = new
    return [f'numbered all {len(ids)} annotations anew, from 1']
