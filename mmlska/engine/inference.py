"""Predictions of a trained detector or segmentor on images, drawn."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement
from mmengine.visualization import BaseVisBackend
from torch import nn

from mmlska.checkpoint import CheckpointError, unwrap
from mmlska.data.sources import classes_of as names_of
from mmlska.deploy import fuse

from .config import DETECTION, SEGMENTATION, load_config, task_of, type_name
from .launch import check_checkpoint
from .weights import load_all_weights

# mmdet numbers the segments of a panoptic map as class + INSTANCE_OFFSET * instance.
INSTANCE_OFFSET = 1000
# Seconds for which the frame of a video is shown at least; 0 would wait for a key.
SHOWN_FRAME = 0.001


class UnreadableImageError(ValueError):
    """A file that is no image, or a damaged one."""


class KeptPicture(BaseVisBackend):
    """Takes what a visualizer draws, where others write files.

    Attributes:
        picture: The last one, RGB bytes of shape ``(H, W, 3)``.
    """

    def __init__(self) -> None:
        super().__init__('')
        self.picture: np.ndarray | None = None

    @property
    def experiment(self) -> 'KeptPicture':
        """What holds the pictures."""
        return self

    def _init_env(self) -> None:
        """Nothing has to be made."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **_: Any) -> None:
        """Keep the picture."""
        self.picture = image


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
        self.takes_frames = takes_frames(loading)
        # mmengine hands out visualizers by name and would give two predictors the same one.
        name = f'predictor_{id(self)}'
        self._kept = KeptPicture()
        kept = dict(vis_backends=[self._kept], name=name)
        self.visualizer = VISUALIZERS.build({**cfg.visualizer, **kept})
        self.visualizer.dataset_meta = with_palette(dataset_meta or classes_of(dataset_cfg))

    def read(self, image: str | Path | np.ndarray) -> dict:
        """Load an image as the test pipeline of the config does.

        Args:
            image: An image file, or the frame of a video: BGR bytes of shape ``(H, W, 3)``.

        Returns:
            What the loading steps make of it; ``img`` has the pixels.

        Raises:
            UnreadableImageError: If they cannot read the file.
            ValueError: If the config reads no ordinary images, and this is a frame.
        """
        return self._read_frame(image) if isinstance(image, np.ndarray) else self._read_file(image)

    def _read_frame(self, frame: np.ndarray) -> dict:
        """What the loading steps would make of a file of these pixels."""
        if not self.takes_frames:
            raise ValueError(
                'a frame of a video cannot take the place of what the test pipeline of the config '
                'loads: it loads files by more than LoadImageFromFile, or not as colours of a byte'
            )
        size = frame.shape[:2]
        return dict(img=frame, img_path=None, img_id=0, img_shape=size, ori_shape=size)

    def _read_file(self, path: str | Path) -> dict:
        """Run the loading steps."""
        if not os.path.getsize(path):
            raise UnreadableImageError(f'{str(path)!r} cannot be read as an image: it is empty')
        try:
            return self.load(dict(img_path=str(path), img_id=0))
        # Each format has a reader with exceptions of its own.
        except Exception as error:
            raise UnreadableImageError(
                f'{str(path)!r} cannot be read as an image ({describe_error(error)})'
            ) from error

    def __call__(self, image: str | Path | np.ndarray) -> BaseDataElement:
        """Predict on one image file or frame, see :meth:`read`.

        Raises:
            UnreadableImageError: If the pipeline of the config cannot read the file.
        """
        data = self.prepare(self.read(image))
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
        image: str | Path | np.ndarray,
        prediction: BaseDataElement,
        out_file: str | Path | None = None,
        score_thr: float = 0.3,
        show: bool = False,
    ) -> np.ndarray:
        """Draw a prediction over its image.

        Args:
            image: The image file or frame.
            prediction: What calling the predictor returned.
            out_file: Where the picture goes. Defaults to None, nowhere.
            score_thr: Least score of a detection that is drawn.
            show: Whether to show the picture in a window; one of a file until it is closed.

        Returns:
            The picture: RGB bytes of shape ``(H, W, 3)``.
        """
        is_frame = isinstance(image, np.ndarray)
        options = dict(pred_score_thr=score_thr) if self.is_detector else {}
        with warnings.catch_warnings():
            # mmengine warns of every box that ends at the border, and draws it.
            warnings.filterwarnings('ignore', 'Warning: The .* is out of bounds')
            self.visualizer.add_datasample(
                'video' if is_frame else Path(image).name,
                displayable(self.read(image)['img'], self.channel_order),
                self._drawable(prediction),
                draw_gt=False,
                show=show,
                wait_time=SHOWN_FRAME if is_frame else 0,
                **options,
            )
        picture = self._kept.picture
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(picture), str(out_file))
        return picture

    def _drawable(self, prediction: BaseDataElement) -> BaseDataElement:
        """The prediction as the visualizers of mmdet and mmseg can take it."""
        if not self.is_detector:
            # A tensor of one pixel is an index to NumPy, by which mmseg draws.
            return prediction.numpy()
        if 'pred_panoptic_seg' in prediction and not self._count_segments(prediction):
            # mmdet stacks the areas of all segments, and fails without one.
            prediction = prediction.clone()
            del prediction.pred_panoptic_seg
        return prediction

    def _count_segments(self, prediction: BaseDataElement) -> Counter:
        """How many segments of each class a panoptic map has."""
        count = len(self.visualizer.dataset_meta['classes'])
        segments = prediction.pred_panoptic_seg.sem_seg.unique()
        labels = (segments % INSTANCE_OFFSET).tolist()
        # One label beyond the classes stands for no segment.
        return Counter(label for label in labels if label < count)

    def describe(self, prediction: BaseDataElement, score_thr: float = 0.3) -> str:
        """What a prediction holds, in words: detections, or segments, or area, by class."""
        classes = self.visualizer.dataset_meta['classes']
        if 'pred_panoptic_seg' in prediction:
            return in_words(self._count_segments(prediction), classes) or 'no segment'
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


def takes_frames(loading: Sequence[dict]) -> bool:
    """Whether loading an image is no more than decoding it to BGR bytes."""
    step = loading[-1]
    return (
        len(loading) == 1
        and type_name(step) == 'LoadImageFromFile'
        and channel_order(step) == 'bgr'
        and step.get('color_type', 'color') == 'color'
        and not step.get('to_float32')
    )


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
    known = {**getattr(kind, 'METAINFO', {}), **(dataset_cfg.get('metainfo') or {})}
    return {**known, 'classes': names_of(dataset_cfg, kind)}


def with_palette(meta: dict) -> dict:
    """Give each class a colour, the same in every run, where the data set has none.

    A single name, ``classes=('screw')``, is one class, and not the classes of its letters.
    """
    classes, palette = meta['classes'], meta.get('palette')
    classes = (classes,) if isinstance(classes, str) else classes
    meta, count = {**meta, 'classes': classes}, len(classes)
    # Text names a palette of the visualizer.
    if isinstance(palette, str) or len(palette or ()) >= count:
        return meta
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
    return model, known_classes(content.get('meta') or {})


def known_classes(meta: Mapping) -> dict | None:
    """What the ``meta`` of a checkpoint says about the classes; None if nothing.

    MMDetection 2 and MMSegmentation 0 named them ``CLASSES``, in ``meta`` itself.
    """
    known = meta.get('dataset_meta') or meta
    known = {str(key).lower(): value for key, value in known.items()}
    names = {key: known[key] for key in ('classes', 'palette') if known.get(key)}
    return names if 'classes' in names else None
