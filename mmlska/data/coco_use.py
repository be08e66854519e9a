"""What of a COCO file a run can use: objects of its classes, images that its filter leaves."""

from typing import Any

from .coco_images import is_side
from .coco_values import is_id
from .faults import WARNING, Fault
from .sources import CocoSource


def check_use(source: CocoSource, data: dict[str, Any]) -> list[Fault]:
    """A file of which nothing, or no object, is left for a run.

    Args:
        source: The data set.
        data: Content of its annotation file, with lists of objects.
    """
    classes = None if source.classes is None else set(map(str, source.classes))
    kinds = {
        one['id']
        for one in data['categories']
        if is_id(one.get('id')) and (classes is None or one.get('name') in classes)
    }
    objects = [
        entry
        for entry in data['annotations']
        if is_id(entry.get('category_id')) and entry['category_id'] in kinds
    ]
    if not source.evaluated and data['images'] and not any_left(source, data['images'], objects):
        shown = dict(filter_empty_gt=source.filters_empty, min_size=source.min_size)
        message = (
            f'filter_cfg={shown} of the config leaves none of its {len(data["images"])} images: '
            'the data set cannot be loaded'
        )
        remedy = 'annotate them with classes of the config, or change filter_cfg'
        return [Fault(source.path, message, remedy)]
    if all(entry.get('iscrowd') for entry in objects):
        message = 'has no object of the classes of the config, crowds apart'
        return [Fault(source.path, message, 'nothing can be learned or measured here', WARNING)]
    return []


def any_left(source: CocoSource, images: list[dict], objects: list[dict]) -> bool:
    """Whether mmdet's filter of training sets leaves an image; one of unknown size counts."""
    owners = {entry.get('image_id') for entry in objects if is_id(entry.get('image_id'))}
    return any(
        (not source.filters_empty or image.get('id') in owners)
        and all(
            not is_side(image.get(side)) or image[side] >= source.min_size
            for side in ('width', 'height')
        )
        for image in images
        if is_id(image.get('id'))
    )
