"""The 15 + 4 corruptions of ImageNet-C, the same for the same image, and a transform with them.

The corruptions are those of "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (arXiv 1903.12261), as the library imagecorruptions has them for images of any size
(arXiv 1907.07484). mmdet's ``Corrupt`` calls that library too, but hands it BGR images where RGB
ones are expected, which changes the colours of frost, snow and spatter, and does not seed two of
the corruptions, so that no two evaluations are equal.
"""

import zlib
from collections.abc import Iterable
from importlib import metadata

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmlska.registry import TRANSFORMS
from mmlska.shipped import nearest

GROUPS = dict(
    noise=('gaussian_noise', 'shot_noise', 'impulse_noise'),
    blur=('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    weather=('snow', 'frost', 'fog', 'brightness'),
    digital=('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
    extra=('speckle_noise', 'gaussian_blur', 'spatter', 'saturate'),
)
BENCHMARK = sum((GROUPS[name] for name in ('noise', 'blur', 'weather', 'digital')), ())
CORRUPTIONS = (*BENCHMARK, *GROUPS['extra'])
SEVERITIES = (1, 2, 3, 4, 5)
# The library refuses smaller images.
MIN_SIDE = 32
# These draw from generators of their own; all others from NumPy's global one.
WITH_OWN_SEED = ('impulse_noise', 'glass_blur')
DISTRIBUTIONS = ('imagecorruptions-imaug', 'imagecorruptions')
CHANNEL_ORDERS = ('bgr', 'rgb')


def choose_corruptions(names: Iterable[str]) -> list[str]:
    """Corruptions by their names or by those of groups, each once, in the benchmark's order.

    Args:
        names (Iterable[str]): Names of :data:`CORRUPTIONS`; ``'benchmark'`` for the 15 that count
            in the benchmark, ``'all'`` for all 19, or a group of :data:`GROUPS`.

    Returns:
        list[str]: The corruptions.

    Raises:
        ValueError: If there is no such name, or none is given.
    """
    groups = dict(benchmark=BENCHMARK, all=CORRUPTIONS, **GROUPS)
    chosen: set[str] = set()
    for name in names:
        if name not in groups and name not in CORRUPTIONS:
            raise ValueError(
                f'no corruption {name!r}: allowed are {", ".join((*groups, *CORRUPTIONS))}'
                f'{nearest(name, (*groups, *CORRUPTIONS))}'
            )
        chosen.update(groups.get(name, (name,)))
    if not chosen:
        raise ValueError(f'name at least one corruption: {", ".join((*groups, *CORRUPTIONS))}')
    return [name for name in CORRUPTIONS if name in chosen]


def corrupt(image: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupt an image; the result depends on nothing but the arguments.

    The random numbers follow from the pixels, so that an image is corrupted alike wherever it lies,
    in whatever order images are read, and different images differently. NumPy's global generator is
    left as it was.

    An image with a side below 32 pixels is continued to 32 by reflection, corrupted, and cut back.
    A grey image is corrupted as the colour image that it stands for, and made grey again.

    Args:
        image (np.ndarray): RGB ``(H, W, 3)`` or grey ``(H, W)`` or ``(H, W, 1)``, uint8.
        corruption (str): One of :data:`CORRUPTIONS`.
        severity (int): 1 to 5, or 0 for the image as it is.
        seed (int): Another seed gives another sample of noise. Defaults to 0.

    Returns:
        np.ndarray: An image of the same shape, uint8.

    Raises:
        ImportError: If the library is not installed.
        RuntimeError: If its version does not work with the installed NumPy or scikit-image.
        TypeError: If the image does not hold bytes.
        ValueError: If its shape, the corruption or the severity is out of range.
    """
    check_cell(corruption, severity)
    _check_image(image)
    if severity == 0:
        return image.copy()
    height, width = image.shape[:2]
    rgb = image if image.ndim == 3 else image[..., None]
    rgb = np.ascontiguousarray(np.broadcast_to(rgb, (height, width, 3)))
    below, right = (max(MIN_SIDE - side, 0) for side in (height, width))
    rgb = np.pad(rgb, ((0, below), (0, right), (0, 0)), mode='symmetric')
    key = [zlib.crc32(rgb.tobytes()), *rgb.shape, CORRUPTIONS.index(corruption), severity, seed]
    number = int(np.random.SeedSequence(key).generate_state(1)[0])
    corrupted = _call_library(rgb, corruption, severity, number)[:height, :width]
    if image.ndim == 3 and image.shape[2] == 3:
        return np.ascontiguousarray(corrupted)
    return cv2.cvtColor(corrupted, cv2.COLOR_RGB2GRAY).reshape(image.shape)


def check_cell(corruption: str, severity: int) -> None:
    """Check the name of a corruption and its severity.

    Raises:
        ValueError: If there is no such corruption, or the severity is not an integer from 0 to 5.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(
            f'no corruption {corruption!r}: allowed are {", ".join(CORRUPTIONS)}'
            f'{nearest(corruption, CORRUPTIONS)}'
        )
    if severity not in (0, *SEVERITIES):
        raise ValueError(f'a severity is an integer from 0 (clean) to 5, got {severity!r}')


def library_version() -> str:
    """Distribution and version of the library that corrupts.

    Raises:
        ImportError: If there is none.
    """
    for name in DISTRIBUTIONS:
        try:
            return f'{name} {metadata.version(name)}'
        except metadata.PackageNotFoundError:
            continue
    raise ImportError(
        "corruptions need the library imagecorruptions: pip install 'mmlska[analysis]'"
    )


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, 'dtype', type(image).__name__)
        raise TypeError(f'an image to corrupt is an array of uint8, got {kind}')
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3) or not image.size:
        raise ValueError(
            'an image to corrupt has the shape (H, W), (H, W, 1) or (H, W, 3) and a pixel at '
            f'least, got {image.shape}'
        )


def _call_library(rgb: np.ndarray, corruption: str, severity: int, number: int) -> np.ndarray:
    version = library_version()
    from imagecorruptions import corrupt as corrupt_by_library

    kept = np.random.get_state()
    np.random.seed(number)
    own = dict(seed=number) if corruption in WITH_OWN_SEED else {}
    try:
        with np.errstate(invalid='raise'):
            return corrupt_by_library(rgb, severity, corruption, **own)
    except FloatingPointError:
        # Where no drop falls, as happens on small images, spatter divides by the highest of none.
        if corruption == 'spatter':
            return rgb
        raise
    except Exception as error:
        raise RuntimeError(
            f'{corruption} of {version} fails ({type(error).__name__}: {error}); '
            "imagecorruptions-imaug, which `pip install 'mmlska[analysis]'` brings, works with "
            'NumPy 2 and scikit-image 0.26. The original imagecorruptions does not: uninstall it '
            'first, as both have the same import name'
        ) from error
    finally:
        np.random.set_state(kept)


@TRANSFORMS.register_module()
class CorruptImage(BaseTransform):
    """Corrupt the loaded image of a pipeline, see :func:`corrupt`.

    It belongs before any step that changes the values of the image: right behind the one that
    loads it, or, for a classifier, behind the crop, as in ImageNet-C. Modified key: ``img``.

    Args:
        corruption (str): One of :data:`CORRUPTIONS`.
        severity (int): 1 to 5, or 0 for the image as it is.
        channel_order (str): ``'bgr'``, as mmcv loads images, or ``'rgb'``. Defaults to ``'bgr'``.
        seed (int): Seed of all noise. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, corruption: str, severity: int, channel_order: str = 'bgr', seed: int = 0
    ) -> None:
        check_cell(corruption, severity)
        if channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order is 'bgr' or 'rgb', got {channel_order!r}")
        self.corruption = corruption
        self.severity = severity
        self.channel_order = channel_order
        self.seed = seed

    def transform(self, results: dict) -> dict:
        """Corrupt ``results['img']``.

        Raises:
            ValueError: If it is no image that can be corrupted; the message names the file.
        """
        if self.severity == 0:
            return results
        image = results['img']
        try:
            pixels = _as_bytes(image)
            order = slice(None, None, -1 if self.channel_order == 'bgr' else 1)
            rgb = pixels[..., order] if pixels.ndim == 3 else pixels
            corrupted = corrupt(rgb, self.corruption, self.severity, self.seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{results.get("img_path", "an image")}: {error}') from error
        corrupted = corrupted[..., order] if corrupted.ndim == 3 else corrupted
        results['img'] = np.ascontiguousarray(corrupted, dtype=image.dtype)
        return results

    def __repr__(self) -> str:
        """Name and settings."""
        return f'{type(self).__name__}({self.corruption!r}, {self.severity}, seed={self.seed})'


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """The same values as uint8, which images that were loaded with ``to_float32`` are not.

    Raises:
        ValueError: If values would change.
    """
    with np.errstate(invalid='ignore'):
        pixels = image.astype(np.uint8)
    if not np.array_equal(pixels, image):
        raise ValueError(
            f'only images with whole values from 0 to 255 can be corrupted, this one, of '
            f'{image.dtype}, has others: corrupt it before it is scaled'
        )
    return pixels
