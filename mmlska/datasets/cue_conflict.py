"""Pictures that carry the shape of one thing and the texture of another.

Their names tell both, as in the stimuli of "ImageNet-trained CNNs are biased towards texture"
(arXiv 1811.12231): ``cat3-bicycle2.png`` has the shape of the third cat and the texture of the
second bicycle. :func:`make_cue_conflict` makes such pictures without a download, from the digits
and photographs of the digit scenes; unlike theirs they are no photographs in another style.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import cv2
import mmcv
import numpy as np

from .digit_scenes import Sources, load_sources, render_scene

NAME = re.compile(r'(?P<shape>[A-Za-z_]+)(?P<a>\d+)-(?P<texture>[A-Za-z_]+)(?P<b>\d+)')
KINDS = ('silhouettes', 'scenes')
DIGIT_WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
PARAMETERS_FILE = 'cue_conflict.json'
# Brightness around and inside the shapes of scenes, whose ink is light as in the digit scenes.
DIM, BRIGHT = 0.4, 0.65
PLAIN = 128


@dataclass(frozen=True)
class CuePicture:
    """A picture and what its name says.

    Attributes:
        path: The file.
        shape: Category of the shape.
        texture: Category of the texture.
        shape_instance: Category and number of the shape.
        texture_instance: Category and number of the texture.
    """

    path: Path
    shape: str
    texture: str
    shape_instance: str
    texture_instance: str


@dataclass(frozen=True)
class CuePairs:
    """Pairs of pictures that share one cue.

    Attributes:
        shape: Indices of pictures of the same shape and of different textures, ``(P, 2)``.
        texture: Indices of pictures of the same texture and of different shapes, ``(Q, 2)``.
    """

    shape: np.ndarray
    texture: np.ndarray


def parse_name(path: str | Path) -> CuePicture:
    """Read the cues out of a file name.

    Raises:
        ValueError: If it is no such name.

    >>> picture = parse_name('cat/cat3-bicycle2.png')
    >>> picture.shape_instance, picture.texture_instance
    ('cat3', 'bicycle2')
    """
    found = NAME.fullmatch(Path(path).stem)
    if found is None:
        raise ValueError(
            f'{str(path)!r} does not tell shape and texture: a name is like '
            'airplane1-bicycle2.png, the shape first'
        )
    shape, a, texture, b = found.group('shape', 'a', 'texture', 'b')
    return CuePicture(Path(path), shape, texture, f'{shape}{a}', f'{texture}{b}')


def find_pictures(root: str | Path) -> list[CuePicture]:
    """All pictures below a folder, sorted by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If the name of an image does not tell its cues.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {str(root)!r} of cue-conflict pictures')
    files = sorted(path for path in root.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f'{str(root)!r} holds no image ({", ".join(SUFFIXES)})')
    return [parse_name(path) for path in files]


def pair_pictures(
    pictures: Sequence[CuePicture], most: int | None = None, seed: int = 0
) -> CuePairs:
    """Pair pictures that share the shape, and pictures that share the texture.

    Two pictures share a cue if it is of the same instance (``cat3``), and differ in the instance of
    the other. That may be of the same category: where only other categories are allowed, a neuron
    for the other cue correlates negatively, by 1 / (categories - 1), and what is left of this
    between n instances is 1 / (n - 1).

    Args:
        pictures: The pictures.
        most: Most pairs of each kind; drawn at random where there are more. Defaults to all.
        seed: Seed of the draw. Defaults to 0.

    Returns:
        The pairs. Each picture of a pair stands first as often as second, by chance.

    Raises:
        ValueError: If there are no two pairs of either kind.
    """
    rng = np.random.default_rng(seed)
    shape = _pairs(pictures, 'shape_instance', 'texture_instance', most, rng)
    texture = _pairs(pictures, 'texture_instance', 'shape_instance', most, rng)
    if min(len(shape), len(texture)) < 2:
        raise ValueError(
            f'{len(pictures)} pictures give {len(shape)} pairs of one shape and {len(texture)} of '
            'one texture: two of each are needed at least, and some hundreds for a good estimate'
        )
    return CuePairs(shape, texture)


def _pairs(
    pictures: Sequence[CuePicture],
    shared: str,
    other: str,
    most: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[getattr(picture, shared)].append(index)
    found = [
        pair
        for group in groups.values()
        for pair in combinations(group, 2)
        if getattr(pictures[pair[0]], other) != getattr(pictures[pair[1]], other)
    ]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    if most is not None and len(pairs) > most:
        pairs = pairs[np.sort(rng.choice(len(pairs), most, replace=False))]
    return rng.permuted(pairs, axis=1)


def make_cue_conflict(
    root: str | Path,
    kind: str = 'silhouettes',
    num_shapes: int = 20,
    num_textures: int = 20,
    image_size: int = 128,
    seed: int = 0,
) -> Path:
    """Make a picture of each shape with each texture; nothing is downloaded.

    The textures are crops of the photographs of the digit scenes, the shapes their handwritten
    digits: one large digit on grey (``'silhouettes'``), or the digits of a whole scene, lighter
    than the texture around them (``'scenes'``), which is what a model of the digit scenes knows.
    Both come from the split for validation. The same parameters give the same files.

    Args:
        root: Folder to make. A folder made with the same parameters is left as it is.
        kind: ``'silhouettes'`` or ``'scenes'``.
        num_shapes: How many shapes. Defaults to 20.
        num_textures: How many textures. Defaults to 20.
        image_size: Side of the square pictures, pixels. Defaults to 128.
        seed: Seed of all choices. Defaults to 0.

    Returns:
        ``root``.

    Raises:
        FileExistsError: If the folder holds anything else.
        ModuleNotFoundError: If scikit-learn or scikit-image is not installed.
        OSError: If a picture cannot be written.
        ValueError: If the kind is unknown, or a number out of range.
    """
    _check_numbers(kind, num_shapes, num_textures, image_size)
    root = Path(root)
    parameters = dict(
        kind=kind,
        num_shapes=num_shapes,
        num_textures=num_textures,
        image_size=image_size,
        seed=seed,
    )
    mark = root / PARAMETERS_FILE
    if mark.is_file() and json.loads(mark.read_text(encoding='utf-8')) == parameters:
        return root
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(
            f'{str(root)!r} is not empty, and does not hold these pictures; name a new folder'
        )
    sources = load_sources('val')
    rng = np.random.default_rng(seed)
    draw = _draw_silhouette if kind == 'silhouettes' else _draw_scene
    shapes = _numbered(draw(sources, image_size, rng) for _ in range(num_shapes))
    textures = _numbered(_draw_texture(sources, image_size, rng) for _ in range(num_textures))
    for shape, opacity in shapes.items():
        for texture, pixels in textures.items():
            _write(root / f'{shape}-{texture}.png', _compose(opacity, pixels, kind))
    # Last, so that a folder with this file is complete.
    mark.write_text(json.dumps(parameters) + '\n', encoding='utf-8')
    return root


def _check_numbers(kind: str, num_shapes: int, num_textures: int, image_size: int) -> None:
    if kind not in KINDS:
        raise ValueError(f'no kind {kind!r} of pictures: allowed are {", ".join(KINDS)}')
    if min(num_shapes, num_textures) < 2:
        raise ValueError(
            f'pairs need two shapes and two textures at least, got {num_shapes} and {num_textures}'
        )
    if not 64 <= image_size <= 1024:
        raise ValueError(f'image_size must lie between 64 and 1024, got {image_size}')


def _numbered(named: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Give each of a category the next number."""
    counts: dict[str, int] = defaultdict(int)
    numbered = {}
    for name, content in named:
        counts[name] += 1
        numbered[f'{name}{counts[name]}'] = content
    return numbered


def _draw_silhouette(
    sources: Sources, size: int, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """A digit as large as the picture: its name, and its opacity ``(H, W)``, 0 to 1."""
    index = int(rng.integers(len(sources.scans)))
    scale = 0.9 * size / sources.scans[index].shape[0]
    middle = (sources.scans[index].shape[0] - 1) / 2
    transform = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-15, 15), scale)
    transform[:, 2] += (size - 1) / 2 - middle
    ink = cv2.warpAffine(sources.scans[index], transform, (size, size), flags=cv2.INTER_CUBIC)
    return DIGIT_WORDS[sources.digits[index]], np.clip((ink - 0.45) / 0.2, 0, 1)


def _draw_scene(sources: Sources, size: int, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """The digits of a scene, where they lie; their category is that of the first."""
    scene = render_scene(sources, size, rng)
    opacity = np.any(scene.masks, axis=0).astype(np.float32)
    return DIGIT_WORDS[scene.digits[0]], cv2.GaussianBlur(opacity, (3, 3), 0)


def _draw_texture(sources: Sources, size: int, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A crop of a photograph: the photograph's name, and its pixels, BGR ``(H, W, 3)``."""
    scene = render_scene(sources, size, rng)
    return re.sub(r'[^A-Za-z]+', '_', Path(scene.photograph).stem), scene.background


def _compose(opacity: np.ndarray, texture: np.ndarray, kind: str) -> np.ndarray:
    opacity = opacity[..., None]
    texture = texture.astype(np.float32)
    if kind == 'silhouettes':
        picture = opacity * texture + (1 - opacity) * PLAIN
    else:
        light = 255 * BRIGHT + (1 - BRIGHT) * texture
        picture = opacity * light + (1 - opacity) * DIM * texture
    return np.round(picture).astype(np.uint8)


def _write(path: Path, picture: np.ndarray) -> None:
    if not mmcv.imwrite(picture, str(path)):
        raise OSError(f'no picture could be written to {str(path)!r}')
