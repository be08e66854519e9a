"""Predictions of a trained detector or segmentor on image files, drawn."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

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

from .config import load_config
from .launch import DETECTION, SEGMENTATION, check_checkpoint
from .weights import load_all_weights

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


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
        else:
            raise FileNotFoundError(f'no image or folder {str(path)!r} (from {Path.cwd()})')
    return images


def output_paths(images: Sequence[Path], folder: str | Path) -> list[Path]:
    """A picture for each image, in one folder, under the name of the image.

    Raises:
        ValueError: If two images would share a picture.
    """
    names = Counter(image.name for image in images)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(
            f'several images are called {twice[0]!r}: their pictures would overwrite each other; '
            'draw them in separate runs'
        )
    return [Path(folder) / image.name for image in images]


class Predictor:
    """A trained model with the test pipeline and the drawing style of its config.

    Args:
        config: Path of a config, or the name of a shipped one.
        checkpoint: File with the weights of that model.
        device: Where to run. Defaults to a GPU where there is one.
        options: Overrides of the config by dotted key.
        fused: Whether to fold norms into convolutions, see :func:`mmlska.deploy.fuse`.

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
        if cfg.default_scope not in (DETECTION, SEGMENTATION):
            raise ValueError(
                f'{config}: a config of {cfg.default_scope}; pictures are drawn for detectors '
                f'({DETECTION}) and segmentors ({SEGMENTATION})'
            )
        self.is_detector = cfg.default_scope == DETECTION
        init_default_scope(cfg.default_scope)
        self.device = find_device(device)
        self.model, dataset_meta = load_model(cfg, checkpoint)
        self.model.to(self.device).eval()
        if fused:
            self.model = fuse(self.model)
        dataset_cfg = test_dataset(cfg)
        self.pipeline = Compose(
            [step for step in dataset_cfg.pipeline if 'LoadAnnotations' not in str(step['type'])]
        )
        # mmengine hands out visualizers by name and would give two predictors the same one.
        name = f'predictor_{id(self)}'
        self.visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name=name))
        self.visualizer.dataset_meta = with_palette(dataset_meta or classes_of(dataset_cfg))

    def __call__(self, path: str | Path) -> BaseDataElement:
        """Predict on one image file.

        Raises:
            UnreadableImageError: If the file is no image that can be read.
        """
        read_image(path)
        data = self.pipeline(dict(img_path=str(path), img_id=0))
        with torch.no_grad():
            return self.model.test_step(pseudo_collate([data]))[0]

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
            read_image(path),
            prediction,
            draw_gt=False,
            show=show,
            out_file=None if out_file is None else str(out_file),
            **(dict(pred_score_thr=score_thr) if self.is_detector else {}),
        )

    def describe(self, prediction: BaseDataElement, score_thr: float = 0.3) -> str:
        """What a prediction holds, in words: detections by class, or area by class."""
        classes = self.visualizer.dataset_meta['classes']
        if self.is_detector:
            found = prediction.pred_instances
            counts = Counter(found.labels[found.scores > score_thr].tolist())
            words = [f'{count} x {classes[label]}' for label, count in counts.most_common()]
            return ', '.join(words) or f'nothing above a score of {score_thr}'
        counts = Counter(prediction.pred_sem_seg.data.flatten().tolist())
        area = sum(counts.values())
        return ', '.join(f'{classes[i]} {100 * n / area:.0f} %' for i, n in counts.most_common(5))


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB of shape ``(H, W, 3)``.

    Raises:
        UnreadableImageError: If the file is no image that can be read.
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
    with DATASETS.switch_scope_and_registry(None) as registry:
        known = registry.get(dataset_cfg['type']).METAINFO
    return {**known, **dataset_cfg.get('metainfo', {})}


def with_palette(meta: dict) -> dict:
    """Give each class a colour, the same in every run, where the data set has none."""
    if meta.get('palette'):
        return meta
    colours = np.random.default_rng(0).integers(40, 256, size=(len(meta['classes']), 3))
    return {**meta, 'palette': [tuple(colour) for colour in colours.tolist()]}


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
