"""Files from the page, which may be anything: read within limits, or refused with the reason."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MB = 2**20
# No others are tried: some readers of Pillow start programs, or take long.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF')
MAX_BYTES = 20 * MB
MAX_PIXELS = 50_000_000
# As detectors of COCO see photographs; segmentors keep a score for each class and pixel.
MAX_SIDE = 1333
# A longer strip has no width left when a model scales it down.
MAX_RATIO = 20


class UploadError(ValueError):
    """A file that is not taken; the message says why, and what would be."""


@dataclass(frozen=True)
class Upload:
    """An image as the models get it.

    Attributes:
        path: A file of RGB bytes; it is gone after the ``with`` block.
        size: Its width and height, pixels.
        notes: What differs from the file that was given, in words.
    """

    path: Path
    size: tuple[int, int]
    notes: tuple[str, ...]


@contextmanager
def opened(path: str | Path) -> Iterator[Upload]:
    """Read a file from the page as RGB bytes, into a file for the time of a ``with`` block.

    Raises:
        UploadError: If it is not taken.
    """
    image, notes = read(path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / 'image.png'
        image.save(plain)
        yield Upload(plain, image.size, tuple(notes))


def read(path: str | Path) -> tuple[Image.Image, list[str]]:
    """An image as RGB bytes, upright, and what was changed for that.

    Raises:
        UploadError: If it is no image, damaged, or over the limits.
    """
    if os.path.getsize(path) > MAX_BYTES:
        raise UploadError(
            f'The file has {os.path.getsize(path) / MB:.0f} MB; up to {MAX_BYTES // MB} MB '
            'are taken.'
        )
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            # The limit on pixels is our own.
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            check_size(*image.size)
            notes = describe(image)
            image.load()
            return as_rgb(image, notes), notes
    except UploadError:
        raise
    except UnidentifiedImageError:
        raise UploadError(
            f'This is no image that is read here, whatever its name says: take one of '
            f'{", ".join(FORMATS)}.'
        ) from None
    # A damaged file ends in exceptions of any kind.
    except Exception as error:
        raise UploadError(f'The image is damaged or cut off ({error}).') from error


def check_size(width: int, height: int) -> None:
    """Refuse an image by its header, before its pixels get memory.

    Raises:
        UploadError: If it has too many pixels, or is too long and thin.
    """
    if width * height > MAX_PIXELS:
        raise UploadError(
            f'The image has {width} × {height} pixels, {width * height / 1e6:.0f} million; '
            f'up to {MAX_PIXELS / 1e6:.0f} million are taken.'
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UploadError(
            f'The image has {width} × {height} pixels; one side may be up to {MAX_RATIO} times '
            'as long as the other.'
        )


def describe(image: Image.Image) -> list[str]:
    """What of an image its RGB bytes will not show."""
    frames = getattr(image, 'n_frames', 1)
    notes = [f'The first of {frames} frames is shown.'] if frames > 1 else []
    if image.mode.startswith(('I', 'F')):
        notes.append('Its values are no bytes: they were spread over 0 to 255.')
    elif image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        notes.append('Transparent parts were laid on white.')
    elif image.mode not in ('RGB', 'L', 'P', '1'):
        notes.append(f'{image.mode} was converted to RGB.')
    return notes


def as_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Pixels as RGB bytes, upright, no longer than models look at; adds to the notes."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(('I', 'F')):
        image = spread(image)
    elif image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    image = image.convert('RGB')
    if max(image.size) > MAX_SIDE:
        before = image.size
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        notes.append(f'Scaled from {before[0]} × {before[1]} to {image.width} × {image.height}.')
    return image


def spread(image: Image.Image) -> Image.Image:
    """Values of any range as bytes, from the smallest to the largest."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
