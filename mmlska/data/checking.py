"""The checks of whole data sets: a quick one that opens no image, and the full one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .annotation_file import read_annotations, without_cycle_search
from .class_names import check_names
from .coco_annotations import check_annotations
from .coco_use import check_use
from .coco_values import is_id
from .faults import WARNING, Fault, fault_of, has_errors, joined
from .pictures import LabelMap, Picture, check_label_map, check_picture, foreground_fault
from .sources import IMAGE_SUFFIXES, CocoSource, LabelSource, label_pairs

SMALL, LARGE = 32**2, 96**2  # COCO's limits between sizes, pixels
CHUNK = 16
MOST_JOBS = 61  # Windows waits for no more


@dataclass
class Report:
    """What a check of one data set has found.

    Attributes:
        source: The data set.
        faults: What is wrong.
        counts: For each class its objects that are small, medium and large (detection), or its
            pixels (segmentation).
        num_images: How many images there are.
    """

    source: CocoSource | LabelSource
    faults: list[Fault] = field(default_factory=list)
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_images: int = 0


@without_cycle_search()
def quick_faults(source: CocoSource | LabelSource) -> list[Fault]:
    """Faults that are found without opening an image; of label maps the first one is opened."""
    if isinstance(source, CocoSource):
        faults = coco_content(source, exact=False)[1]
        return coco_content(source)[1] if has_errors(faults) else faults
    pairs = label_pairs(source)
    faults = pairing_faults(source, pairs)
    if faults or not source.read_by_mmseg:
        return faults
    # What is wrong with one is mostly wrong with all: colours, or classes that are counted from 1.
    first = [check_label_map(label)[0] for label in label_maps(source, pairs[:1])]
    return [fault for found in first for fault in found if fault.level != WARNING]


def coco_content(
    source: CocoSource, exact: bool = True
) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Read and check an annotation file; returns its content, None if unreadable, and faults."""
    data, faults = read_annotations(source.path, exact)
    if data is None:
        return None, faults
    faults += check_names(source.path, data['categories'], source.classes)
    faults += check_annotations(source.path, data, source.masks, source.evaluated)
    if not has_errors(faults):
        faults += check_use(source, data)
    for path in source.truths:
        faults += truth_faults(source, data, path, exact)
    return data, faults


def truth_faults(
    source: CocoSource, data: dict[str, Any], path: str, exact: bool = True
) -> list[Fault]:
    """Faults of the file by which a metric judges, where it is another than the data set's.

    Args:
        source: The data set.
        data: Content of its own annotation file.
        path: The file of the metric.
        exact: As of :func:`read_annotations`.
    """
    if os.path.realpath(path) == os.path.realpath(source.path):
        return []
    truth, faults = coco_content(replace(source, path=path, truths=()), exact)
    if truth is None:
        return faults
    known = {image['id'] for image in truth['images'] if is_id(image.get('id'))}
    strange = [
        (image, image.get('file_name', ''))
        for image in data['images']
        if is_id(image.get('id')) and image['id'] not in known
    ]
    message = f'does not list what {source.path} does: the evaluation stops, after the training'
    remedy = 'let ann_file of the evaluator and of the data set name the same file'
    return faults + fault_of(path, strange, message, remedy, noun='image')


def pairing_faults(source: LabelSource, pairs: Sequence[tuple[str, str]]) -> list[Fault]:
    """Images without label maps, and folders whose files end otherwise than the config says."""
    absent = [image for image, _ in pairs if source.list_file and not os.path.isfile(image)]
    if absent:
        message = (
            f'lists {len(absent)} names without an image, the first of which would be '
            f'{absent[0]!r}: the run stops when its turn comes'
        )
        remedy = f'write names below the folder, without img_suffix={source.image_suffix!r}'
        return [Fault(source.list_file, message, remedy, where=tuple(absent))]
    if not pairs:
        return [suffix_fault(source.image_folder, 'img_suffix', source.image_suffix)]
    if not source.label_folder:
        return []
    missing = [label for _, label in pairs if not os.path.isfile(label)]
    if len(missing) == len(pairs):
        return [suffix_fault(source.label_folder, 'seg_map_suffix', source.label_suffix)]
    remedy = 'draw it, or drop its image'
    message = 'does not exist: the run stops when its turn comes'
    return [Fault(label, message, remedy) for label in missing]


def suffix_fault(folder: str, setting: str, suffix: str) -> Fault:
    """The fault of a folder without a file of a suffix; names those that it has."""
    found = {
        os.path.splitext(name)[1]
        for _, _, files in os.walk(folder)
        for name in files
        if '.' in name
    }
    others = sorted(found, key=lambda end: end.lower() not in IMAGE_SUFFIXES)
    remedy = f"{setting}='{others[0]}' in the data set" if others else 'correct data_prefix'
    ends = f'files that end in {", ".join(others[:5])}' if others else 'no file'
    message = f'has no file that fits {setting}={suffix!r}; it has {ends}'
    return Fault(folder, message, remedy)


def check_source(
    source: CocoSource | LabelSource,
    jobs: int = 1,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Report:
    """Check a data set with all its images.

    Args:
        source: The data set.
        jobs: How many processes decode.
        progress: Wraps the results as they come, told how many there will be; shows them.
    """
    progress = progress or (lambda results, total: results)
    if isinstance(source, CocoSource):
        return check_coco(source, jobs, progress)
    return check_label_maps(source, jobs, progress)


def check_coco(source: CocoSource, jobs: int, progress: Callable) -> Report:
    """Check a detection set."""
    data, faults = coco_content(source)
    if data is None:
        return Report(source, faults)
    pictures = [
        Picture(
            os.path.join(source.image_folder, str(image['file_name'])),
            (image['width'], image['height']) if {'width', 'height'} <= image.keys() else None,
            source.ignores_orientation,
            source.decoder,
        )
        for image in data['images']
        if 'file_name' in image
    ]
    found = progress(parallel(check_picture, pictures, jobs), len(pictures))
    faults += joined([fault for faults_of_one in found for fault in faults_of_one])
    return Report(source, faults, count_objects(data), len(data['images']))


def count_objects(data: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Objects of each category by COCO's sizes, crowds left out."""
    names = {one['id']: str(one.get('name')) for one in data['categories'] if is_id(one.get('id'))}
    counts = {name: [0, 0, 0] for name in names.values()}
    for entry in data['annotations']:
        area, category = entry.get('area'), entry.get('category_id')
        if not is_id(category) or category not in names or entry.get('iscrowd'):
            continue
        if isinstance(area, (int, float)):
            counts[names[category]][int(area >= SMALL) + int(area >= LARGE)] += 1
    return {name: tuple(numbers) for name, numbers in counts.items()}


def check_label_maps(source: LabelSource, jobs: int, progress: Callable) -> Report:
    """Check a segmentation set."""
    pairs = label_pairs(source)
    faults = pairing_faults(source, pairs)
    if faults and all(fault.file in (source.image_folder, source.label_folder) for fault in faults):
        return Report(source, faults)
    labels = label_maps(source, pairs)
    pictures = [Picture(image, decoder=source.decoder) for image, _ in pairs]
    total = len(labels) + len(pictures)
    results = progress(parallel(check_sample, [*pictures, *labels], jobs), total)
    counts = np.zeros(256, dtype=np.int64)
    found = []
    for faults_of_one, counts_of_one in results:
        found += faults_of_one
        counts += counts_of_one
    foreground = foreground_fault(source.label_folder, counts, labels[0]) if labels else None
    faults = joined([*faults, *found, *([foreground] if foreground else [])])
    return Report(source, faults, count_pixels(source, counts), len(pictures))


def label_maps(source: LabelSource, pairs: Sequence[tuple[str, str]]) -> list[LabelMap]:
    """The label maps of some samples that are there."""
    num_classes = None if source.classes is None else len(source.classes)
    return [
        LabelMap(label, image, num_classes, source.reduce_zero_label, source.ignore_index)
        for image, label in pairs
        if source.label_folder and os.path.isfile(label)
    ]


def check_sample(sample: Picture | LabelMap) -> tuple[list[Fault], np.ndarray]:
    """Check an image or a label map; the pixels of each value are zero for an image."""
    if isinstance(sample, LabelMap):
        return check_label_map(sample)
    return check_picture(sample), np.zeros(256, dtype=np.int64)


def count_pixels(source: LabelSource, counts: np.ndarray) -> dict[str, tuple[int]]:
    """Pixels of each class, and of what is ignored."""
    first = int(source.reduce_zero_label)
    classes = source.classes or [
        str(value) for value in range(int(np.max(np.flatnonzero(counts), initial=0)) + 1 - first)
    ]
    numbers = counts[first : first + len(classes)].tolist()
    named = {name: (number,) for name, number in zip(classes, numbers, strict=False)}
    return {**named, '(ignored)': (int(counts.sum() - sum(numbers)),)}


def parallel(function: Callable, items: Sequence, jobs: int) -> Iterable:
    """Results of a function in the order of the items, from several processes."""
    if jobs == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(min(jobs, MOST_JOBS), initializer=end_with_parent) as pool:
        yield from pool.map(function, items, chunksize=CHUNK)


def end_with_parent() -> None:
    """Let a process of a pool end with the one that started it, and at once by Ctrl-C.

    Killed, the other cannot tell it to; and a pool takes Python's KeyboardInterrupt for a result.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def rare_classes(report: Report) -> list[Fault]:
    """A warning of classes that a data set has not one object of."""
    counts = {name: sum(n) for name, n in report.counts.items() if name != '(ignored)'}
    empty = [name for name, number in counts.items() if not number]
    if not empty or len(empty) == len(counts):
        return []
    place = getattr(report.source, 'path', '') or getattr(report.source, 'label_folder', '')
    message = f'{len(empty)} of {len(counts)} classes have no object'
    return [Fault(place, message, 'nothing can be learned of them here', WARNING, tuple(empty))]
