"""Images that the weights of a model are measured and refined on."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.logging import print_log

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
# Of ImageNet, for red, green and blue from 0 to 255.
MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)
BATCH_SIZE = 8


def read_images(
    folders: Sequence[str | os.PathLike], size: int = 224, number: int = 64
) -> list[torch.Tensor]:
    """Read images out of folders, as the models see them on ImageNet.

    Args:
        folders (Sequence[str | PathLike]): Folders with images at any depth.
        size (int): Side of the square in the middle of each image, whose shorter side is scaled to
            it. Defaults to 224.
        number (int): Most images to read, spread evenly over the sorted names. Defaults to 64.

    Returns:
        list[Tensor]: Normalised batches ``(N, 3, size, size)``.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If the size or the number is not positive, or if no file is an image that can be
            read.
    """
    _check_positive(size=size, number=number)
    paths = [path for folder in folders for path in _find(Path(folder).expanduser())]
    named = ', '.join(repr(str(folder)) for folder in folders)
    if not paths:
        raise ValueError(f'{named} holds no image: no file in it ends in {", ".join(SUFFIXES)}')
    if len(paths) > number:
        paths = [paths[i * len(paths) // number] for i in range(number)]
    images = [image for path in paths if (image := _read(path, size)) is not None]
    if not images:
        raise ValueError(
            f'{named} holds no image that can be read; {len(paths)} files were tried, '
            f'{str(paths[0])!r} the first'
        )
    return list(torch.stack(images).split(BATCH_SIZE))


def random_images(
    size: int = 224, number: int = 8, seed: int = 0, channels: int = 3
) -> list[torch.Tensor]:
    """Batches ``(N, channels, size, size)`` of noise, the same for the same seed.

    Raises:
        ValueError: If the size or the number is not positive.
    """
    _check_positive(size=size, number=number)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(number, channels, size, size, generator=generator)
    return list(noise.split(BATCH_SIZE))


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f'the {name} of images must be positive, but is {value}')


def _find(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(f'the folder {str(folder)!r} of images does not exist')
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)


def _read(path: Path, size: int) -> torch.Tensor | None:
    image = mmcv.imread(str(path)) if path.stat().st_size else None
    if image is None:
        print_log(f'{str(path)!r} cannot be read as an image', 'current', logging.WARNING)
        return None
    height, width = image.shape[:2]
    scale = size / min(height, width)
    image = mmcv.imresize(
        image, (max(size, round(width * scale)), max(size, round(height * scale)))
    )
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    middle = mmcv.bgr2rgb(image)[top : top + size, left : left + size]
    return torch.from_numpy((middle - MEAN) / STD).permute(2, 0, 1)
