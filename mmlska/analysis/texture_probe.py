"""How much a representation tells about texture: the nearest neighbour on a set of textures.

LSKA's paper (arXiv 2309.01439, Table XIII) classifies the Describable Textures Dataset (DTD) in
this way: the lower the accuracy, the less texture is in the features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = range(1, 11)
REFERENCES = ('train', 'val')


@dataclass(frozen=True)
class TextureSplit:
    """One division of a texture data set.

    Attributes:
        known: Images whose texture is told.
        known_names: Their textures.
        asked: Images whose texture is asked for.
        asked_names: Their textures.
    """

    known: list[Path]
    known_names: list[str]
    asked: list[Path]
    asked_names: list[str]


def read_dtd(root: str | Path, split: int = 1) -> TextureSplit:
    """Read a split of DTD: images of ``train`` and ``val`` are known, those of ``test`` asked for.

    Args:
        root: Folder with ``images/<texture>/*.jpg`` and ``labels/{train,val,test}<split>.txt``,
            whose lines are paths below ``images``.
        split: 1 to 10. Defaults to 1.

    Raises:
        FileNotFoundError: If a list or an image is missing.
        ValueError: If the split is out of range, or a list is empty.
    """
    if split not in SPLITS:
        raise ValueError(f'DTD has the splits 1 to 10, got {split}')
    root = Path(root)
    known = [line for name in REFERENCES for line in _read_list(root, f'{name}{split}')]
    asked = _read_list(root, f'test{split}')
    return TextureSplit(
        *(part for lines in (known, asked) for part in (_files(root, lines), _names(lines)))
    )


def _read_list(root: Path, name: str) -> list[str]:
    path = root / 'labels' / f'{name}.txt'
    if not path.is_file():
        raise FileNotFoundError(f'no list {str(path)!r}: DTD has labels/train1.txt and so on')
    lines = path.read_text('utf-8').split()
    if not lines:
        raise ValueError(f'{str(path)!r} is empty')
    return lines


def _files(root: Path, lines: Sequence[str]) -> list[Path]:
    files = [root / 'images' / line for line in lines]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f'{len(missing)} images are missing, {str(missing[0])!r} the first')
    return files


def _names(lines: Sequence[str]) -> list[str]:
    return [line.partition('/')[0] for line in lines]


def nearest_neighbour_accuracy(
    known: np.ndarray, known_names: Sequence[str], asked: np.ndarray, asked_names: Sequence[str]
) -> float:
    """Share of images whose nearest known image (Euclidean) has their texture, percent.

    Args:
        known: Features ``(N, C)`` of images whose texture is known.
        known_names: Their textures, N.
        asked: Features ``(M, C)``.
        asked_names: Their textures, M.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If lengths or channels differ.
    """
    if len(known) != len(known_names) or len(asked) != len(asked_names):
        raise ValueError(
            f'every image has features and a texture: got {len(known)} and {len(known_names)}, '
            f'{len(asked)} and {len(asked_names)}'
        )
    from sklearn.neighbors import KNeighborsClassifier

    neighbour = KNeighborsClassifier(n_neighbors=1).fit(known, list(known_names))
    return 100 * float(neighbour.score(asked, list(asked_names)))
