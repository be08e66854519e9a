"""Predictions of a trained detector or segmentor on image files, drawn."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement
from torch import nn

from mmlska.checkpoint import CheckpointError, unwrap
from mmlska.deploy import fuse

from .config import DETECTION, SEGMENTATION, load_config, task_of, type_name
from .launch import check_checkpoint
from .weights import load_all_weights

IMAGE_SUFFIXES = (
    *('.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm'),
    *('.png', '.ppm', '.tif', '.tiff', '.webp'),
)


# mmdet numbers the segments of a panoptic map as class + INSTANCE_OFFSET * instance.
INSTANCE_OFFSET = 1000


class UnreadableImageError(ValueError):
    """A file that is no image, or a damaged one."""


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files among the arguments; a folder stands for the images that lie in it.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no image.
    """
    images = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise FileNotFoundError(
                    f'the folder {str(path)!r} holds no image ({", ".join(IMAGE_SUFFIXES)})'
                )
            images += found
        elif path.is_file():
            images.append(path)
        elif re.match(r'\w{2,}:/', str(path)):
            raise FileNotFoundError(f'{path.as_posix()!r} is an address: fetch the image first')
        else:
            raise FileNotFoundError(f'no image or folder {str(path)!r} (from {Path.cwd()})')
    return images


def output_paths(images: Sequence[Path], folder: str | Path) -> list[Path]:
    """A picture for each image, in one folder, under the name of the image.

    A name whose suffix stands for no format that OpenCV writes gets ``.png`` in addition.

    Raises:
        ValueError: If two images would share a picture.
    """
    names = Counter(picture_name(image) for image in images)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(
            f'several images are called {twice[0]!r}: their pictures would overwrite each other; '
            'draw them in separate runs'
        )
    return [Path(folder) / picture_name(image) for image in images]


def picture_name(image: Path) -> str:
    """File name of the picture that is drawn for an image."""
    return image.name if is_writable(image) else f'{image.name}.png'


def is_writable(path: str | Path) -> bool:
    """Whether the suffix of a path stands for a format that OpenCV writes."""
    return bool(Path(path).suffix) and cv2.haveImageWriter(str(path))


class Predictor:
    """A trained model with the test pipeline and the drawing style of its config.

    Args:
        config: Path of a config, or the name of a shipped one.
        checkpoint: File with the weights of that model.
        device: Where to run. Defaults to a GPU where there is one.
        options: Overrides of the config by dotted key.
        fused: Whether to fuse norms into convolutions, see :func:`mmlska.deploy.fuse`.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the config is of another task, the checkpoint of another model, or there is
            no such device.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str,
        device: str | None = None,
        options: dict | None = None,
        fused: bool = False,
    ) -> None:
        cfg = load_config(config, options)
        check_checkpoint(checkpoint, 'checkpoint')
        task = task_of(cfg)
        if task not in (DETECTION, SEGMENTATION):
            raise ValueError(
                f'{config}: a config of {task}; pictures are drawn for detectors '
                f'({DETECTION}) and segmentors ({SEGMENTATION})'
            )
        self.is_detector = task == DETECTION
        init_default_scope(cfg.default_scope)
        self.device = find_device(device)
        self.model, dataset_meta = load_model(cfg, checkpoint)
        self.model.to(self.device).eval()
        if fused:
            self.model = fuse(self.model)
        dataset_cfg = test_dataset(cfg)
        loading, preparing = split_pipeline(dataset_cfg.pipeline)
        self.load, self.prepare = Compose(loading), Compose(preparing)
        self.channel_order = channel_order(loading[-1])
        # mmengine hands out visualizers by name and would give two predictors the same one.
        name = f'predictor_{id(self)}'
        self.visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name=name))
        self.visualizer.dataset_meta = with_palette(dataset_meta or classes_of(dataset_cfg))

    def read(self, path: str | Path) -> dict:
        """Load an image as the test pipeline of the config does.

        Returns:
            What the loading steps make of it; ``img`` has the pixels.

        Raises:
            UnreadableImageError: If they cannot read the file.
        """
        if not os.path.getsize(path):
            raise UnreadableImageError(f'{str(path)!r} cannot be read as an image: it is empty')
        try:
            return self.load(dict(img_path=str(path), img_id=0))
        # Each format has a reader with exceptions of its own.
        except Exception as error:
            raise UnreadableImageError(
                f'{str(path)!r} cannot be read as an image ({describe_error(error)})'
            ) from error

    def __call__(self, path: str | Path) -> BaseDataElement:
        """Predict on one image file.

        Raises:
            UnreadableImageError: If the pipeline of the config cannot read the file.
        """
        data = self.prepare(self.read(path))
        with torch.no_grad():
            return self.model.test_step(pseudo_collate([data]))[0]

    def batch(self, path: str | Path) -> dict:
        """What the model itself gets of one image file: ``inputs`` and ``data_samples``.

        Raises:
            UnreadableImageError: If the pipeline of the config cannot read the file.
        """
        data = pseudo_collate([self.prepare(self.read(path))])
        return self.model.data_preprocessor(data, False)

    def draw(
        self,
        path: str | Path,
        prediction: BaseDataElement,
        out_file: str | Path | None = None,
        score_thr: float = 0.3,
        show: bool = False,
    ) -> None:
        """Draw a prediction over its image.

        Args:
            path: The image.
            prediction: What calling the predictor returned.
            out_file: Where the picture goes. Defaults to None, nowhere.
            score_thr: Least score of a detection that is drawn.
            show: Whether to show the picture in a window.
        """
        if out_file is not None:
            Path(out_file).parent.mkdir(parents=True, exist_ok=True)
        self.visualizer.add_datasample(
            Path(path).name,
            displayable(self.read(path)['img'], self.channel_order),
            # A tensor of one pixel is an index to NumPy, by which mmseg draws.
            prediction if self.is_detector else prediction.numpy(),
            draw_gt=False,
            show=show,
            out_file=None if out_file is None else str(out_file),
            **(dict(pred_score_thr=score_thr) if self.is_detector else {}),
        )

    def describe(self, prediction: BaseDataElement, score_thr: float = 0.3) -> str:
        """What a prediction holds, in words: detections, or segments, or area, by class."""
        classes = self.visualizer.dataset_meta['classes']
        if 'pred_panoptic_seg' in prediction:
            segments = prediction.pred_panoptic_seg.sem_seg.unique()
            labels = (segments % INSTANCE_OFFSET).tolist()
            counts = Counter(label for label in labels if label < len(classes))
            return in_words(counts, classes) or 'no segment'
        if self.is_detector:
            found = prediction.pred_instances
            counts = Counter(found.labels[found.scores > score_thr].tolist())
            return in_words(counts, classes) or f'nothing above a score of {score_thr}'
        counts = Counter(prediction.pred_sem_seg.data.flatten().tolist())
        area = sum(counts.values())
        return ', '.join(f'{classes[i]} {100 * n / area:.0f} %' for i, n in counts.most_common(5))


def in_words(counts: Counter, classes: Sequence[str]) -> str:
    """How many there are of each class, the most frequent first."""
    return ', '.join(f'{count} x {classes[label]}' for label, count in counts.most_common())


def describe_error(error: Exception) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def split_pipeline(pipeline: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """Split a test pipeline into the steps that load the image and those that prepare it.

    Steps that load annotations are left out.

    Raises:
        ValueError: If no step loads an image.
    """
    steps = [step for step in pipeline if 'Annotation' not in type_name(step)]
    loading = [i for i, step in enumerate(steps) if type_name(step).startswith('Load')]
    if not loading:
        raise ValueError(
            'the test pipeline of the config loads no image: its steps are '
            f'{", ".join(map(type_name, pipeline))}'
        )
    return steps[: loading[-1] + 1], steps[loading[-1] + 1 :]


def channel_order(loading_step: dict) -> str:
    """``'bgr'`` for what mmcv decodes, ``'rgb'`` for bands that come as the file has them."""
    decoded = type_name(loading_step) == 'LoadImageFromFile'
    return 'bgr' if decoded and loading_step.get('imdecode_backend') != 'tifffile' else 'rgb'


def displayable(pixels: np.ndarray, order: str = 'bgr') -> np.ndarray:
    """Make loaded pixels a picture that can be drawn on.

    Of more than three bands the first three are shown, of two the first. Values that are no bytes
    are spread from their 1st percentile to their 99th, all bands by the same measure.

    Args:
        pixels: Image ``(H, W)`` or ``(H, W, C)`` of any type.
        order: ``'bgr'`` or ``'rgb'``, the order of its first three bands.

    Returns:
        RGB bytes of shape ``(H, W, 3)``.
    """
    pixels = np.atleast_3d(pixels)
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., [0, 0, 0]]
    if order == 'bgr':
        pixels = pixels[..., ::-1]
    finite = np.isfinite(pixels)
    pixels = np.where(finite, pixels, 0)
    if pixels.min() < 0 or pixels.max() > 255 or (pixels != np.round(pixels)).any():
        low, high = np.percentile(pixels[finite], (1, 99)) if finite.any() else (0, 1)
        pixels = (pixels - low) * (255 / max(high - low, 1e-12))
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))


def read_image(path: str | Path) -> np.ndarray:
    """Read an ordinary image as RGB bytes of shape ``(H, W, 3)``.

    Raises:
        UnreadableImageError: If OpenCV cannot read the file.
    """
    image = mmcv.imread(str(path)) if os.path.getsize(path) else None
    if image is None:
        raise UnreadableImageError(f'{str(path)!r} cannot be read as an image')
    return mmcv.bgr2rgb(image)


def find_device(device: str | None) -> torch.device:
    """The device of that name, a GPU or else the CPU if none is named.

    Raises:
        ValueError: If this machine does not have it.
    """
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {device}: not on this machine ({reason})') from error
    return torch.device(device)


def test_dataset(cfg: Config) -> dict:
    """Config of the test set, without its wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def classes_of(dataset_cfg: dict) -> dict:
    """What a dataset's class and config say about its classes and their colours."""
    kind = dataset_cfg['type']
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return {**kind.METAINFO, **dataset_cfg.get('metainfo', {})}


def with_palette(meta: dict) -> dict:
    """Give each class a colour, the same in every run, where the data set has none."""
    if meta.get('palette'):
        return meta
    count = len(meta['classes'])
    # All hues, neighbours far apart: every third is dark.
    colours = [hsv_to_rgb(i * 0.382 % 1, 0.8, 0.6 if i % 3 == 2 else 0.95) for i in range(count)]
    return {**meta, 'palette': [tuple(round(255 * part) for part in c) for c in colours]}


def load_model(cfg: Config, checkpoint: str) -> tuple[nn.Module, dict | None]:
    """Build the model of a config with all the weights of a checkpoint.

    Returns:
        The model, and what the checkpoint says about the classes (None if nothing).

    Raises:
        ValueError: If the checkpoint cannot be read, or lacks weights of the model.
    """
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    load_all_weights(model, unwrap(content), checkpoint)
    return model, (content.get('meta') or {}).get('dataset_meta')
