"""Faults of image files and label maps, found by decoding them."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .faults import WARNING, Fault

LARGEST_ASPECT = 100
# OpenCV, which mmcv decodes with, refuses larger images.
LARGEST_PIXELS = 2**30
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
# How files of TIFF and BigTIFF begin.
TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
# Formats that every build of OpenCV reads; of the others it depends on what is in them.
ALWAYS_DECODED = ('BMP', 'JPEG', 'MPO', 'PNG')
TRUTH_SUFFIXES = dict(JPEG=('.jpg', '.jpeg', '.jpe', '.jfif'), PNG=('.png',))


@dataclass(frozen=True)
class Picture:
    """An image file that a data set names.

    Attributes:
        path: The file.
        size: Width and height that its annotations are for, None if they do not say.
        ignores_orientation: Whether the config loads photographs as they are stored.
        decoder: What the config decodes with, ``'cv2'`` for OpenCV; '' if nobody can tell.
    """

    path: str
    size: tuple[int, int] | None = None
    ignores_orientation: bool = False
    decoder: str = ''


@dataclass(frozen=True)
class LabelMap:
    """A label map with the image that it is for.

    Attributes:
        path: The file.
        image: The image.
        num_classes: How many classes the config has, None if unknown.
        reduce_zero_label: Whether 0 stands for no class, and 1 for the first.
        ignore_index: Value of pixels that do not count.
    """

    path: str
    image: str
    num_classes: int | None
    reduce_zero_label: bool = False
    ignore_index: int = 255


def opened(path: str, decode: Callable[[Image.Image], Any]) -> tuple[Any, list[Fault]]:
    """Decode a file; returns what ``decode`` makes of it (None if nothing), and its faults."""
    if os.path.lexists(path) and not os.path.isfile(path):
        return None, [Fault(path, 'is no file, or a link to none', 'put the file in its place')]
    if not os.path.isfile(path):
        return None, [Fault(path, 'does not exist', 'copy it there, or correct the names')]
    if not os.path.getsize(path):
        return None, [Fault(path, 'is empty (zero bytes)', 'copy it again')]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return decode(image), []
    except UnidentifiedImageError:
        if is_tiff(path):
            # Pillow does not know files of many bands or floats, which the config may well read.
            return None, []
        return None, [Fault(path, 'is no image', 'copy it again, or drop it')]
    except Image.DecompressionBombError as error:
        message = f'is a decompression bomb ({error})'
        return None, [Fault(path, message, 'cut it into tiles')]
    # Pillow's plugins raise what they please at damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        return None, [Fault(path, f'is damaged: {error}', 'copy it again, or drop it')]


def is_tiff(path: str) -> bool:
    """Whether a file begins as one of TIFF."""
    with open(path, 'rb') as file:
        return file.read(4) in TIFF_STARTS


def size_of(image: Image.Image) -> tuple[int, int] | None:
    """Width and height of an image, None if its file has pages, each of which may be a band."""
    has_pages = image.format == 'TIFF' and getattr(image, 'n_frames', 1) > 1
    return None if has_pages else image.size


def check_picture(picture: Picture) -> list[Fault]:
    """Check an image: there, whole, of a size that can be learned from, the size that is said."""

    def decode(image: Image.Image) -> tuple:
        size, kind = size_of(image), image.format
        turned = image.getexif().get(ORIENTATION) in TURNED
        if size is not None and size[0] * size[1] <= LARGEST_PIXELS:
            # An eighth of the size is decoded: enough to meet every damage, and much faster.
            image.draft('L', (max(size[0] // 8, 1), max(size[1] // 8, 1)))
            image.load()
        return size, kind, turned

    facts, faults = opened(picture.path, decode)
    if facts is None:
        return faults or decoder_faults(picture, 'TIFF')
    size, kind, turned = facts
    if size is None:
        return decoder_faults(picture, kind)
    return [
        *size_faults(picture.path, size),
        *said_size_faults(picture, size, turned),
        *suffix_faults(picture.path, kind),
        *decoder_faults(picture, kind),
    ]


def decoder_faults(picture: Picture, kind: str) -> list[Fault]:
    """A format that the pipeline cannot read, though it is an image."""
    if picture.decoder != 'cv2' or kind in ALWAYS_DECODED or cv2.imread(picture.path) is not None:
        return []
    message = f'is a {kind} that OpenCV, with which the pipeline of the config reads, cannot decode'
    return [Fault(picture.path, message, 'save it as PNG or JPEG, or load it by another step')]


def size_faults(path: str, size: tuple[int, int]) -> list[Fault]:
    """Sizes at which models or OpenCV fail."""
    words = f'{size[0]} x {size[1]} pixels'
    if size[0] * size[1] > LARGEST_PIXELS:
        return [Fault(path, f'has {words}: OpenCV refuses more than 2^30', 'cut it into tiles')]
    if max(size) > LARGEST_ASPECT * min(size):
        message = f'is a strip of {words}: scaled to the test size no row may be left'
        return [Fault(path, message, 'cut it into tiles, or drop it', WARNING)]
    if min(size) < 8:
        return [Fault(path, f'has {words}: there is nothing to see', 'drop it', WARNING)]
    return []


def said_size_faults(picture: Picture, size: tuple[int, int], turned: bool) -> list[Fault]:
    """A size that is not the one that the annotations are for."""
    if picture.size is None:
        return []
    loaded = size if picture.ignores_orientation or not turned else size[::-1]
    said = tuple(picture.size)
    if said == loaded:
        return []
    words = f'{said[0]} x {said[1]}'
    if turned and said in (size, size[::-1]):
        message = (
            'is a photograph with an EXIF rotation: the pipeline of the config loads it as '
            f'{loaded[0]} x {loaded[1]}, its annotations are for {words}'
        )
        choice = (
            "load it as stored (LoadImageFromFile with color_type='color_ignore_orientation')"
            if said == size
            else "let loading apply it (LoadImageFromFile with color_type='color')"
        )
        return [Fault(picture.path, message, f'{choice}, or draw the annotations anew')]
    message = f'has {loaded[0]} x {loaded[1]} pixels, its annotations are for {words}'
    return [Fault(picture.path, message, 'correct width and height, or the image')]


def suffix_faults(path: str, kind: str) -> list[Fault]:
    """A suffix that belongs to another format."""
    suffix = os.path.splitext(path)[1].lower()
    other = [name for name, suffixes in TRUTH_SUFFIXES.items() if suffix in suffixes]
    if other and kind not in (*other, 'MPO'):
        return [Fault(path, f'is a {kind} file by its content', 'name it so', WARNING)]
    return []


def check_label_map(label: LabelMap) -> tuple[list[Fault], np.ndarray]:
    """Check a label map against its image and the classes.

    Returns:
        The faults, and how many pixels each value has ``(256,)``.
    """

    def decode(image: Image.Image) -> tuple:
        return image.format, image.mode, np.asarray(image)

    nothing = np.zeros(256, dtype=np.int64)
    facts, faults = opened(label.path, decode)
    if facts is None:
        return faults, nothing
    kind, mode, pixels = facts
    form = form_fault(label.path, kind, mode, pixels)
    if form:
        return [form], nothing
    counts = np.bincount(pixels.ravel().astype(np.uint8), minlength=256)
    size, _ = opened(label.image, size_of)
    if size is not None and pixels.shape != size[::-1]:
        message = (
            f'has {pixels.shape[1]} x {pixels.shape[0]} pixels, its image {size[0]} x {size[1]}: '
            'the evaluation stops at it'
        )
        faults.append(Fault(label.path, message, 'export both at one size'))
    return [*faults, *value_faults(label, counts)], counts


def form_fault(path: str, kind: str, mode: str, pixels: np.ndarray) -> Fault | None:
    """A file that is no map of one byte per pixel."""
    remedy = 'save it as PNG with one byte per pixel (mode L or P), the value being the class'
    if kind == 'JPEG':
        return Fault(path, 'is JPEG-compressed, which changes the values at every edge', remedy)
    if pixels.ndim != 2:
        return Fault(path, f'has the mode {mode}: colours, not the numbers of classes', remedy)
    if pixels.dtype != np.bool_ and pixels.dtype.itemsize != 1:
        return Fault(
            path, f'has the mode {mode}, more than 8 bit: mmseg cuts values at 255', remedy
        )
    if 1 in pixels.shape:
        words = f'is {pixels.shape[1]} x {pixels.shape[0]} pixels'
        message = f'{words}: mmseg drops a side of one, and stops when its turn comes'
        return Fault(path, message, 'drop it with its image')
    return None


def value_faults(label: LabelMap, counts: np.ndarray) -> list[Fault]:
    """Values that no class has."""
    first = int(label.reduce_zero_label)
    ignored = {label.ignore_index, 255} | ({0} if first else set())
    values = np.flatnonzero(counts).tolist()
    faults = []
    if label.num_classes is not None:
        last = label.num_classes - 1 + first
        beyond = [value for value in values if value > last and value not in ignored]
        if beyond:
            message = (
                f'has the value {beyond[0]}{" and others" if len(beyond) > 1 else ""}, the classes '
                f'of the config are {first} to {last} ({label.num_classes}): CUDA stops the '
                'training, or the evaluation counts them wrong'
            )
            faults.append(Fault(label.path, message, 'correct the map, or num_classes and classes'))
    if set(values) <= ignored:
        message = 'has no pixel of a class: all are ignored'
        faults.append(Fault(label.path, message, 'drop it with its image', WARNING))
    return faults


def foreground_fault(folder: str, counts: np.ndarray, label: LabelMap) -> Fault | None:
    """A whole set of maps whose only values are 0 and 255: black and white masks."""
    values = set(np.flatnonzero(counts).tolist())
    if 255 not in values or not values <= {0, 255} or label.ignore_index != 255:
        return None
    message = 'all maps hold 0 and 255 only: 255 is ignored, so that there is no foreground'
    return Fault(folder, message, 'write 1 for the foreground (value // 255)')
