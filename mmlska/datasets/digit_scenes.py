"""Digit scenes: a small data set for detection and segmentation that needs no download.

Handwritten digits (the 1797 scans that scikit-learn ships) are scaled, rotated and tinted, and laid
on crops of the photographs that scikit-image and scikit-learn ship. As in subtitles, the ink is
light and has a dark rim, so that it can be read on any photograph. Boxes and instance masks stand
in COCO json files, semantic labels in PNG files, so that ``CocoDataset`` and ``BaseSegDataset``
read them as they are.
"""

import importlib.util
import json
import numbers
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import mmcv
import numpy as np

DIGITS = tuple('0123456789')

TRAIN_PHOTOGRAPHS = (
    'skimage/data/astronaut.png',
    'skimage/data/brick.png',
    'skimage/data/camera.png',
    'skimage/data/chelsea.png',
    'skimage/data/gravel.png',
    'skimage/data/hubble_deep_field.jpg',
    'skimage/data/ihc.png',
    'skimage/data/moon.png',
    'skimage/data/motorcycle_left.png',
    'skimage/data/retina.jpg',
    'sklearn/datasets/images/china.jpg',
)
VAL_PHOTOGRAPHS = (
    'skimage/data/coffee.png',
    'skimage/data/coins.png',
    'skimage/data/grass.png',
    'skimage/data/rocket.jpg',
    'sklearn/datasets/images/flower.jpg',
)
PHOTOGRAPHS = dict(train=TRAIN_PHOTOGRAPHS, val=VAL_PHOTOGRAPHS)

PARAMETERS_FILE = 'digit_scenes.json'
# Raised whenever the same parameters give other files, so that old ones are made anew.
REVISION = 1

NUM_TRAIN_SCANS = 1437
MIN_DIGITS, MAX_DIGITS = 3, 8
# Side of a scan, as a fraction of the side of the scene.
MIN_SCALE, MAX_SCALE = 0.22, 0.42
MAX_ANGLE = 15.0
MIN_CROP = 128
MIN_TINT = 140
RIM_BRIGHTNESS = 0.08
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 64, 1024


@dataclass
class Scene:
    """One image and its truth.

    Args:
        image (np.ndarray): BGR, of shape (H, W, 3), uint8.
        background (np.ndarray): The crop of the photograph without digits, same shape.
        photograph (str): Path of the photograph inside the installed packages.
        masks (list[np.ndarray]): One boolean mask of shape (H, W) for each digit; disjoint.
        digits (list[int]): What each mask shows, 0 to 9.
        scans (list[int]): Index of each digit in ``sklearn.datasets.load_digits``.
    """

    image: np.ndarray
    background: np.ndarray
    photograph: str
    masks: list[np.ndarray] = field(default_factory=list)
    digits: list[int] = field(default_factory=list)
    scans: list[int] = field(default_factory=list)

    @property
    def semantic(self) -> np.ndarray:
        """Label map of shape (H, W), uint8: 0 is background, ``d + 1`` is digit ``d``."""
        labels = np.zeros(self.image.shape[:2], np.uint8)
        for mask, digit in zip(self.masks, self.digits, strict=True):
            labels[mask] = digit + 1
        return labels


@dataclass(frozen=True)
class Sources:
    """The digits and photographs of one split.

    Args:
        photographs (dict[str, np.ndarray]): BGR photographs by path, uint8.
        scans (np.ndarray): Ink of shape (N, 8, 8), 0 to 1.
        digits (np.ndarray): What each scan shows, of shape (N, ).
        first_scan (int): Index of ``scans[0]`` among all the scans.
    """

    photographs: dict[str, np.ndarray]
    scans: np.ndarray
    digits: np.ndarray
    first_scan: int


def make_digit_scenes(
    root: str | Path,
    num_train: int = 1200,
    num_val: int = 100,
    image_size: int = 128,
    seed: int = 0,
) -> Path:
    """Make the data set, unless ``root`` holds it already with the same parameters.

    The same parameters give the same files, bit by bit, with the same versions of OpenCV and
    NumPy. Scene ``i`` does not depend on how many scenes there are. ``root`` appears only when it
    is complete::

        root/images/{train,val}/000000.png               BGR photographs with digits
        root/labels/{train,val}/000000.png               0: background, d + 1: digit d
        root/annotations/instances_{train,val}.json      COCO, category d + 1: digit d
        root/digit_scenes.json                           the parameters

    Args:
        root (str | Path): Folder to make; new, empty, or made by this function before.
        num_train (int): Number of training scenes. Defaults to 1200.
        num_val (int): Number of validation scenes. Defaults to 100.
        image_size (int): Side of the square scenes in pixels. Defaults to 128.
        seed (int): Seed of all choices. Defaults to 0.

    Returns:
        Path: ``root``, absolute.

    Raises:
        ValueError: If a number is out of range.
        FileExistsError: If ``root`` holds anything else.
        OSError: If ``root`` cannot be written.
        ModuleNotFoundError: If scikit-learn or scikit-image is not installed.
    """
    # Resolved, so that the folder beside it has the same file system also behind a link.
    root = Path(root).resolve()
    parameters = _check_parameters(num_train, num_val, image_size, seed)
    if _holds(root, parameters):
        return root
    _check_target(root)
    sources = {split: load_sources(split) for split in PHOTOGRAPHS}
    draft = root.with_name(f'.{root.name}.{os.getpid()}.draft')
    try:
        draft.mkdir(parents=True)
        for split, source in sources.items():
            _write_split(draft, split, source, parameters)
        _write_json(draft / PARAMETERS_FILE, parameters)
        _swap(draft, root)
    except OSError as error:
        raise OSError(
            f'cannot write the digit scenes to {str(root)!r} ({error}); '
            'choose a folder that can be written'
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def load_sources(split: str) -> Sources:
    """Load the digits and photographs of one split, which no other split uses.

    Args:
        split (str): 'train' or 'val'.

    Returns:
        Sources: What the scenes of that split are made of.

    Raises:
        ValueError: If there is no such split.
        ModuleNotFoundError: If a library that brings the data is not installed.
    """
    if split not in PHOTOGRAPHS:
        raise ValueError(f'split must be one of {sorted(PHOTOGRAPHS)}, got {split!r}')
    photographs = {path: _read_photograph(path) for path in PHOTOGRAPHS[split]}
    _package_folder('sklearn')
    from sklearn.datasets import load_digits

    scans = load_digits()
    chosen = slice(NUM_TRAIN_SCANS) if split == 'train' else slice(NUM_TRAIN_SCANS, None)
    return Sources(
        photographs=photographs,
        scans=(scans.images[chosen] / 16).astype(np.float32),
        digits=scans.target[chosen],
        first_scan=chosen.start or 0,
    )


def render_scene(sources: Sources, image_size: int, rng: np.random.Generator) -> Scene:
    """Lay up to eight digits, apart from one another, on a crop of a photograph.

    Args:
        sources (Sources): Digits and photographs to choose from.
        image_size (int): Side of the scene in pixels.
        rng (np.random.Generator): Makes every choice.

    Returns:
        Scene: With at least one digit. Digits that find no free place are left out.
    """
    photograph = list(sources.photographs)[rng.integers(len(sources.photographs))]
    background = _crop(sources.photographs[photograph], image_size, rng)
    scene = Scene(background.copy(), background, photograph)
    taken = np.zeros((image_size, image_size), np.uint8)
    for _ in range(rng.integers(MIN_DIGITS, MAX_DIGITS + 1)):
        index = int(rng.integers(len(sources.scans)))
        opacity, shape = _draw_digit(sources.scans[index], image_size, rng)
        place = _find_place(shape, taken, rng)
        if place is None:
            continue
        mask = np.zeros(taken.shape, bool)
        mask[place] = shape
        taken |= cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
        _lay(scene.image[place], opacity, shape, rng)
        scene.masks.append(mask)
        scene.digits.append(int(sources.digits[index]))
        scene.scans.append(sources.first_scan + index)
    return scene


def _check_parameters(num_train: int, num_val: int, image_size: int, seed: int) -> dict:
    ranges = dict(
        num_train=(num_train, 1, 999_999),
        num_val=(num_val, 1, 999_999),
        image_size=(image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE),
        seed=(seed, 0, 2**32 - 1),
    )
    for name, (value, low, high) in ranges.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise ValueError(f'{name} must be an integer, got {value!r}')
        if not low <= value <= high:
            nearest = min(max(value, low), high)
            raise ValueError(
                f'{name} must lie between {low} and {high}, got {value}; the nearest is {nearest}'
            )
    parameters = {name: int(value) for name, (value, _, _) in ranges.items()}
    return dict(revision=REVISION, **parameters)


def _holds(root: Path, parameters: dict) -> bool:
    """Whether ``root`` is complete and was made with these parameters."""
    try:
        made_with = json.loads((root / PARAMETERS_FILE).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return made_with == parameters and all(
        (root / 'annotations' / f'instances_{split}.json').is_file()
        and len(list((root / kind / split).glob('*.png'))) == parameters[f'num_{split}']
        for split in PHOTOGRAPHS
        for kind in ('images', 'labels')
    )


def _check_target(root: Path) -> None:
    if root == Path.cwd():
        raise FileExistsError(f'{str(root)!r} is the current folder; name a new one')
    if not root.exists() or (root / PARAMETERS_FILE).is_file():
        return
    if not root.is_dir():
        raise FileExistsError(f'{str(root)!r} is a file; name a folder for the digit scenes')
    if any(root.iterdir()):
        raise FileExistsError(
            f'{str(root)!r} holds files that are not digit scenes; name a new or an empty folder'
        )


def _swap(draft: Path, root: Path) -> None:
    """Put the finished folder in the place of the old one."""
    old = root.with_name(f'.{root.name}.{os.getpid()}.old')
    if root.exists():
        root.rename(old)
    draft.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def _package_folder(package: str) -> Path:
    distribution = dict(skimage='scikit-image', sklearn='scikit-learn')[package]
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f'the digit scenes use data that {distribution} ships: pip install {distribution}'
        )
    return Path(spec.submodule_search_locations[0])


def _read_photograph(path: str) -> np.ndarray:
    return mmcv.imread(photograph_file(path), flag='color')


def photograph_file(path: str) -> Path:
    """Find a photograph that scikit-image or scikit-learn ships.

    Args:
        path (str): Its path inside the installed packages, as in :data:`PHOTOGRAPHS`.

    Raises:
        FileNotFoundError: If the installed version does not ship it.
        ModuleNotFoundError: If the package is not installed.
    """
    # By path and not by skimage.data, which would import pooch and may download.
    package, _, file = path.partition('/')
    file = _package_folder(package) / file
    if not file.is_file():
        raise FileNotFoundError(
            f'{str(file)!r} is missing, so this version of {package} does not ship it; '
            'scikit-image 0.22 to 0.26 and scikit-learn 1.3 to 1.9 do'
        )
    return file


def _crop(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut out a random square, mirror it at random, and scale it to ``size``."""
    height, width = photograph.shape[:2]
    side = rng.integers(MIN_CROP, min(height, width) + 1)
    top = rng.integers(height - side + 1)
    left = rng.integers(width - side + 1)
    crop = photograph[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=interpolation)


def _draw_digit(
    scan: np.ndarray, image_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and rotate a scan.

    Returns:
        tuple[np.ndarray, np.ndarray]: Opacity of the ink, 0 to 1, and the mask of ink and rim. Both
        have the shape (h, w) and are cut to the mask.
    """
    side = rng.uniform(MIN_SCALE, MAX_SCALE) * image_size
    canvas = int(np.ceil(side * 1.5))
    center = (scan.shape[0] - 1) / 2
    transform = cv2.getRotationMatrix2D(
        (center, center), rng.uniform(-MAX_ANGLE, MAX_ANGLE), side / scan.shape[0]
    )
    transform[:, 2] += (canvas - 1) / 2 - center
    ink = cv2.warpAffine(scan, transform, (canvas, canvas), flags=cv2.INTER_CUBIC)
    # A scan is so coarse that its soft edge would be several pixels wide: make it crisp.
    opacity = np.clip((ink - 0.45) / 0.2, 0, 1)
    mask = cv2.dilate((opacity > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return opacity[cut], mask[cut]


def _find_place(
    mask: np.ndarray, taken: np.ndarray, rng: np.random.Generator, attempts: int = 20
) -> tuple[slice, slice] | None:
    height, width = mask.shape
    for _ in range(attempts):
        top = rng.integers(taken.shape[0] - height + 1)
        left = rng.integers(taken.shape[1] - width + 1)
        place = slice(top, top + height), slice(left, left + width)
        if not taken[place][mask].any():
            return place
    return None


def _lay(
    patch: np.ndarray, opacity: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> None:
    """Lay light ink with a dark rim of the same tint on the patch, in place."""
    tint = rng.integers(MIN_TINT, 256, size=3).astype(np.float64)
    tint *= 255 / tint.max()
    opacity = opacity[mask][:, None]
    patch[mask] = np.round(opacity * tint + (1 - opacity) * RIM_BRIGHTNESS * tint)


def _write_split(root: Path, split: str, sources: Sources, parameters: dict) -> None:
    images, annotations = [], []
    for index in range(parameters[f'num_{split}']):
        stream = list(PHOTOGRAPHS).index(split)
        rng = np.random.default_rng([parameters['seed'], stream, index])
        scene = render_scene(sources, parameters['image_size'], rng)
        name = f'{index:06d}.png'
        _write_image(root / 'images' / split / name, scene.image)
        _write_image(root / 'labels' / split / name, scene.semantic)
        height, width = scene.image.shape[:2]
        images.append(
            dict(
                id=index,
                file_name=name,
                height=height,
                width=width,
                photograph=scene.photograph,
            )
        )
        for mask, digit, scan in zip(scene.masks, scene.digits, scene.scans, strict=True):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    category_id=digit + 1,
                    bbox=_bounding_box(mask),
                    area=int(mask.sum()),
                    segmentation=_run_lengths(mask),
                    iscrowd=0,
                    scan=scan,
                )
            )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(DIGITS)]
    _write_json(
        root / 'annotations' / f'instances_{split}.json',
        dict(images=images, annotations=annotations, categories=categories),
    )


def _write_image(path: Path, image: np.ndarray) -> None:
    if not mmcv.imwrite(image, str(path)):
        raise OSError(f'no image could be written to {str(path)!r}')


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='utf-8')


def _bounding_box(mask: np.ndarray) -> list[int]:
    """Left, top, width and height in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths: column by column, beginning with zeros."""
    pixels = mask.ravel(order='F')
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate([[0], changes, [pixels.size]])
    counts = np.diff(bounds).tolist()
    return dict(size=list(mask.shape), counts=[0, *counts] if pixels[0] else counts)
