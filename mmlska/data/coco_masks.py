"""Polygons and run lengths at which pycocotools stops, crashes or never ends."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain, starmap
from typing import Any, NamedTuple

from .coco_values import are_numbers, as_float, is_id
from .faults import ERROR, WARNING, Fault, fault_of

# pycocotools draws a polygon at five times its size with 32-bit numbers: from 1e8 on it crashes.
LARGEST_COORDINATE = 1e6


class Problem(NamedTuple):
    """What is wrong with a mask: message and remedy of its kind, and a detail of its own."""

    message: str
    remedy: str
    detail: str = ''


def check_masks(
    path: str, annotations: Sequence[dict], sizes: dict[Any, tuple], masks: bool
) -> list[Fault]:
    """Faults of the masks of annotations.

    Args:
        path: The file, for messages.
        annotations: Its annotations, those with all keys.
        sizes: Width and height of the images by id.
        masks: Whether the run reads masks, so that faults of them are errors.
    """
    drawn = [entry for entry in annotations if entry.get('segmentation')]
    lists = [entry for entry in drawn if type(entry['segmentation']) is list]
    problems = [
        (entry, polygons_problem(entry['segmentation']))
        for entry in ([] if are_polygons(lists) else lists)
    ]
    if len(lists) < len(drawn):
        problems += [
            (entry, run_lengths_problem(entry['segmentation'], size_of(entry, sizes)))
            for entry in drawn
            if type(entry['segmentation']) is not list
        ]
    kinds: dict[tuple[str, str], list[tuple[dict, str]]] = {}
    for entry, problem in problems:
        if problem:
            kinds.setdefault(problem[:2], []).append((entry, problem.detail))
    if masks and len(drawn) < len(annotations):
        bare = [(entry, '') for entry in annotations if not entry.get('segmentation')]
        message = "has no 'segmentation', and the config reads masks"
        kinds[message, 'draw it, or leave the box out'] = bare
    level = ERROR if masks else WARNING
    return [
        fault
        for (message, remedy), found in kinds.items()
        for fault in fault_of(path, found, message, remedy, level)
    ]


def size_of(entry: dict, sizes: dict[Any, tuple]) -> tuple | None:
    """Width and height of the image of an annotation, None if they are unknown."""
    size = sizes.get(entry['image_id']) if is_id(entry['image_id']) else None
    return None if size is None or math.isinf(size[0]) else size


def are_polygons(entries: Iterable[dict]) -> bool:
    """Whether nothing is wrong with any polygon: all of them in a few passes in C.

    The length of a vector tells of numbers that are none, not finite or too large at once.
    """
    polygons = list(chain.from_iterable(entry['segmentation'] for entry in entries))
    if not set(map(type, polygons)) <= {list}:
        return False
    counts = set(map(len, polygons))
    if min(counts, default=6) < 6 or any(count % 2 for count in counts):
        return False
    try:
        lengths = list(starmap(math.hypot, polygons))
    except (TypeError, OverflowError):
        return False
    return all(length <= LARGEST_COORDINATE for length in lengths)


def polygons_problem(polygons: list) -> Problem | None:
    """What is wrong with the first polygon that is none, None if all are fine."""
    return next(filter(None, map(polygon_problem, polygons)), None)


def polygon_problem(polygon: Any) -> Problem | None:
    """What is wrong with a polygon, None if nothing is."""
    if type(polygon) is not list or not are_numbers(polygon):
        return Problem('has a polygon that is no list of numbers', 'write [[x, y, x, y, ...]]')
    count, values = len(polygon), [as_float(value) for value in polygon]
    if count < 6:
        return Problem(
            'has a polygon of fewer than six values: the evaluation of masks stops at it',
            'draw three points or more; --fix drops it where others remain',
            f'{count} values',
        )
    if count % 2:
        remedy = 'write pairs of x and y'
        return Problem('has a polygon of an odd number of values', remedy, f'{count} values')
    if not all(map(math.isfinite, values)):
        return Problem(
            'has a polygon with NaN or infinity: pycocotools takes all memory for it',
            'draw it again',
        )
    largest = max(values, key=abs)
    if abs(largest) > LARGEST_COORDINATE:
        return Problem(
            'has a polygon far outside any image: pycocotools crashes at it',
            'draw it again',
            f'a coordinate of {largest:g}',
        )
    return None


def run_lengths_problem(mask: Any, size: tuple | None) -> Problem | None:
    """What is wrong with a mask by run lengths, in an image of ``size`` (width, height)."""
    if not isinstance(mask, dict) or not {'counts', 'size'} <= mask.keys():
        message = 'has a mask that is neither polygons nor run lengths'
        return Problem(message, 'write size and counts')
    shape, counts = mask['size'], mask['counts']
    if not is_shape(shape):
        message = 'has run lengths whose size is not [height, width]'
        return Problem(message, 'write the size of the image', f'size {shape}')
    if size is not None and shape != [size[1], size[0]]:
        return Problem(
            'has run lengths of another size than its image: the evaluation of masks stops at it',
            'encode the mask at the size of the image',
            f'size {shape}, the image has {[size[1], size[0]]}',
        )
    if type(counts) is str:
        counts = counts_of(counts)
    if not are_counts(counts):
        remedy = 'encode the mask with pycocotools.mask.encode'
        return Problem('has run lengths that are no whole numbers, or negative', remedy)
    if sum(counts) != shape[0] * shape[1]:
        return Problem(
            'has run lengths that do not fill its image',
            'encode the mask again',
            f'{sum(counts)} pixels of {shape[0] * shape[1]}',
        )
    return None


def counts_of(text: str) -> list[int] | None:
    """The run lengths that pycocotools has packed into a text, None if it is none of its texts.

    A letter holds five bits of a number, the lowest first, and whether there are more; the last one
    the sign. From the fourth on each number is the difference from the one before the last.
    """
    counts, number, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    return None if shift else counts


def are_counts(counts: Any) -> bool:
    """Whether a value is a list of whole numbers from 0 on."""
    return type(counts) is list and set(map(type, counts)) <= {int} and min(counts, default=0) >= 0


def is_shape(shape: Any) -> bool:
    """Whether a value is a height and a width."""
    return (
        type(shape) is list
        and len(shape) == 2
        and set(map(type, shape)) <= {int}
        and min(shape) > 0
    )
