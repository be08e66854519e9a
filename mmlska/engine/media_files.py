"""Images and videos on disk: which ones are meant, and where what is drawn of them goes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path

import cv2
import mmcv
import numpy as np

IMAGE_SUFFIXES = (
    *('.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm'),
    *('.png', '.ppm', '.tif', '.tiff', '.webp'),
)
VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
# Those that are written, and in which code: OpenCV's own builds bring encoders of these two.
CODECS = {'.avi': 'MJPG', '.mov': 'mp4v', '.mp4': 'mp4v'}


class UnreadableVideoError(ValueError):
    """A file that is no video, or a damaged one."""


def list_images(paths: Iterable[str | Path], videos: bool = False) -> list[Path]:
    """Image files among the arguments.

    A folder stands for the images that lie in it, a glob (``'photos/**/*.jpg'``) for those that it
    matches.

    Args:
        paths: Files, folders and globs.
        videos: Whether videos count as well.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder or glob holds no image.
    """
    images = []
    suffixes = (*IMAGE_SUFFIXES, *(VIDEO_SUFFIXES if videos else ()))
    for path in map(Path, paths):
        if path.is_file():
            images.append(path)
        elif path.is_dir() or has_magic(str(path)):
            among = path.iterdir() if path.is_dir() else map(Path, glob(str(path), recursive=True))
            found = sorted(p for p in among if p.suffix.lower() in suffixes and p.is_file())
            if not found:
                kind = 'folder' if path.is_dir() else 'pattern'
                raise FileNotFoundError(
                    f'the {kind} {str(path)!r} holds no image ({", ".join(suffixes)})'
                )
            images += found
        elif re.match(r'\w{2,}:/', str(path)):
            raise FileNotFoundError(f'{path.as_posix()!r} is an address: fetch the image first')
        else:
            raise FileNotFoundError(f'no image or folder {str(path)!r} (from {Path.cwd()})')
    return images


def output_paths(images: Sequence[Path], folder: str | Path) -> list[Path]:
    """A picture for each image, a video for each video, in one folder, under the same name.

    A name whose suffix stands for no format that is written gets ``.png`` or ``.mp4`` in addition.

    Raises:
        ValueError: If two images would share a picture.
    """
    names = [picture_name(image) for image in images]
    check_distinct(names)
    return [Path(folder) / name for name in names]


def check_distinct(names: Iterable[str]) -> None:
    """Refuse names of files to be written that would overwrite each other.

    Raises:
        ValueError: If two are the same.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f'several images are called {twice[0]!r}: what is written of them would overwrite each '
            'other; take them in separate runs, with an --out-dir each'
        )


def picture_name(image: Path) -> str:
    """File name of the picture that is drawn for an image, or of the video for a video."""
    if is_writable(image, is_video(image)):
        return image.name
    return image.name + ('.mp4' if is_video(image) else '.png')


def is_video(path: str | Path) -> bool:
    """Whether the suffix of a path stands for a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def is_writable(path: str | Path, video: bool = False) -> bool:
    """Whether the suffix of a path stands for a format of pictures (or videos) that is written."""
    suffix = Path(path).suffix.lower()
    return suffix in CODECS if video else bool(suffix) and cv2.haveImageWriter(str(path))


def read_video(path: str | Path) -> mmcv.VideoReader:
    """Open a video: an iterable of frames, BGR bytes of shape ``(H, W, 3)``.

    Raises:
        UnreadableVideoError: If OpenCV finds no frame in it.
    """
    video = mmcv.VideoReader(str(path))
    if not video.opened or video.read() is None:
        raise UnreadableVideoError(f'{str(path)!r} cannot be read as a video')
    return video


class VideoFile:
    """A video that is written frame by frame, whole once the context is left.

    It has no sound, and of an odd height or width the codecs leave out the last row or column.

    Args:
        path: Where it goes; nowhere if None.
        frames_per_second: Its speed.

    Raises:
        OSError: If OpenCV cannot write it.
    """

    def __init__(self, path: str | Path | None, frames_per_second: float) -> None:
        self.path = None if path is None else Path(path)
        self.frames_per_second = frames_per_second
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> 'VideoFile':
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, picture: np.ndarray) -> None:
        """Append a picture, RGB bytes of shape ``(H, W, 3)``; all have the size of the first."""
        if self.path is None:
            return
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
            size = picture.shape[1::-1]
            self._writer = cv2.VideoWriter(str(self.path), codec, self.frames_per_second, size)
        if not self._writer.isOpened():
            raise OSError(f'OpenCV cannot write the video {str(self.path)!r}')
        self._writer.write(mmcv.rgb2bgr(picture))
