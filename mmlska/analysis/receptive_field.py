"""What a position in the middle of a feature map sees of the image.

The effective receptive field ("Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks", arXiv 1701.04128) is the gradient of that position with respect to the image,
added up over images. How it is summed up is that of RepLKNet ("Scaling Up Your Kernels to 31x31",
arXiv 2203.06717, section 4.1 and Table 10): the smallest centred square that holds a share of the
contribution, as a share of the image. Fig. 1 of LSKA (arXiv 2309.01439) shows such fields for
growing kernels. Written from the definitions.
"""

import copy
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.utils import track_iter_progress
from torch import nn

from mmlska.checkpoint import CheckpointError, unwrap
from mmlska.checkpoint.naming import without_wrappers
from mmlska.conversion.images import MEAN, STD, random_images, read_images
from mmlska.engine.weights import load_all_weights
from mmlska.shipped import nearest

from .complexity import image_channels

PREPROCESSOR = 'data_preprocessor'
SHARES = (0.2, 0.3, 0.5, 0.99)
DRAWN_SHARES = (0.5, 0.99)
DIRECTIONS = ('signs', 'sum')
# Below this share of what single channels have, a gradient is the rounding error of their sum.
VANISHING = 1e-4
COLUMNS = 3
# The colours reach from the highest contribution of all fields down to this share of it.
FAINTEST = 1e-4

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Reach:
    """Smallest centred square that holds a share of the contribution.

    Attributes:
        share: Share of the contribution, from 0 to 1.
        side: Side of the square, pixels; odd, or that of the image.
        area: Area of the square as a share of the image.
    """

    share: float
    side: int
    area: float


@dataclass(frozen=True)
class Field:
    """What the middle of one map sees.

    Attributes:
        name: Name of the model.
        stage: Index of the map among those that the backbone returns.
        stride: Pixels of the image for each position of the map.
        weights: Where the weights come from.
        images: How many images were measured.
        contribution: Array ``(H, W)`` that sums to 1.
        box: Top, left, bottom and right (exclusive) of all pixels that can have an influence: the
            theoretical field, cut off at the image.
    """

    name: str
    stage: int
    stride: int
    weights: str
    images: int
    contribution: np.ndarray
    box: Box

    def reaches(self, shares: Iterable[float] = SHARES) -> list[Reach]:
        """The smallest centred square for each share."""
        return [smallest_square(self.contribution, share) for share in shares]

    def is_cut_off(self) -> bool:
        """Whether the theoretical field touches the border of the image."""
        (top, left, bottom, right), (height, width) = self.box, self.contribution.shape
        return top == 0 or left == 0 or bottom == height or right == width


def effective_receptive_field(
    backbone: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    stage: int = -1,
    direction: str = 'signs',
    seed: int = 0,
) -> np.ndarray:
    r"""Gradient of the middle of a map with respect to the image, added up over images.

    For a map :math:`M` of an image :math:`I` and its middle position :math:`p` that is
    :math:`A = \sum_I \sum_{rgb} |\partial (\sum_c s_c M_{c,p}) / \partial I|`. The signs
    :math:`s_c` are drawn anew for each image, so that no channels cancel out. With
    ``direction='sum'`` they are all 1 and negative gradients count nothing, as in RepLKNet. That
    measures nothing where a LayerNorm of equal weights ends the stage, as in an untrained VAN: the
    sum of its channels is constant.

    Args:
        backbone: Anything that maps images ``(N, C, H, W)`` to one map, or to a sequence of maps.
        images: Images ``(N, C, H, W)``, or batches of them, all of one size.
        stage: Which map, as an index of the sequence. Defaults to -1, the last one.
        direction: ``'signs'`` or ``'sum'``. Defaults to ``'signs'``.
        seed: Seed of the signs. Defaults to 0.

    Returns:
        Array ``(H, W)`` of float64 that sums to 1.

    Raises:
        TypeError: If the backbone returns something else, or a batch has another shape.
        ValueError: If there are no images, there is no such map, or the gradient is zero or not
            finite.
    """
    if direction not in DIRECTIONS:
        raise ValueError(
            f'direction {direction!r} is unknown: allowed are {", ".join(DIRECTIONS)}'
            f'{nearest(direction, DIRECTIONS)}'
        )
    generator = torch.Generator().manual_seed(seed)
    total = None
    batches = [images] if isinstance(images, torch.Tensor) else images
    for image in chain.from_iterable(map(_split, batches)):
        gradient = _gradient(backbone, image, stage, direction, generator)
        total = gradient if total is None else total + gradient
    if total is None:
        raise ValueError('a receptive field needs at least one image')
    if not torch.isfinite(total).all():
        raise ValueError('the gradient is not finite: check the weights')
    if not total.any():
        raise ValueError('the gradient is zero everywhere: the map does not depend on the image')
    return (total / total.sum()).cpu().numpy()


def _split(batch: torch.Tensor) -> Sequence[torch.Tensor]:
    """The images ``(1, C, H, W)`` of a batch."""
    if not isinstance(batch, torch.Tensor) or batch.ndim != 4:
        found = f'{type(batch).__name__} {tuple(getattr(batch, "shape", ()))}'
        raise TypeError(f'images come as Tensor (N, C, H, W), alone or in a list, not as {found}')
    return batch.split(1)


def _gradient(
    backbone: nn.Module,
    image: torch.Tensor,
    stage: int,
    direction: str,
    generator: torch.Generator,
) -> torch.Tensor:
    """Contribution ``(H, W)`` of the pixels of one image, float64."""
    image = image.detach().requires_grad_(True)
    middle = middle_of(feature_map(backbone(image), stage))
    signs = torch.randint(0, 2, middle.shape, generator=generator) * 2 - 1
    signed = (middle * signs.to(middle)).sum()
    if direction == 'signs':
        (gradient,) = torch.autograd.grad(signed, image)
        return gradient[0].double().abs().sum(0)
    (gradient,) = torch.autograd.grad(middle.sum(), image, retain_graph=True)
    (likely,) = torch.autograd.grad(signed, image)
    if gradient.abs().max() <= VANISHING * likely.abs().max():
        raise ValueError(
            "direction='sum' measures nothing here: the sum of the channels is constant, as after "
            "a LayerNorm of equal weights; take direction='signs', or trained weights"
        )
    return gradient[0].double().clamp(min=0).sum(0)


def feature_map(outputs: Any, stage: int) -> torch.Tensor:
    """The map ``(N, C, H, W)`` of a stage among what a backbone returned.

    Raises:
        TypeError: If that is no map.
        ValueError: If there is no such stage.
    """
    maps = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    if not isinstance(maps, Sequence):
        raise TypeError(f'a backbone returns maps in a sequence, this one {type(maps).__name__}')
    if not -len(maps) <= stage < len(maps):
        raise ValueError(
            f'stage {stage} is out of range: the backbone returns {len(maps)} maps, so that '
            f'allowed are 0 to {len(maps) - 1}, or {-len(maps)} to -1 from the end'
        )
    chosen = maps[stage]
    if not isinstance(chosen, torch.Tensor) or chosen.ndim != 4:
        shape = getattr(chosen, 'shape', type(chosen).__name__)
        raise TypeError(f'stage {stage} is no map (N, C, H, W) but {shape}')
    return chosen


def middle_of(x: torch.Tensor) -> torch.Tensor:
    """Channels ``(N, C)`` of the middle position of a map."""
    return x[:, :, x.shape[2] // 2, x.shape[3] // 2]


def theoretical_field(
    backbone: nn.Module, shape: tuple[int, int], stage: int = -1, channels: int = 3
) -> Box:
    """All pixels of an image that can have an influence on the middle of a map.

    These are the pixels whose gradient is not exactly zero, in float64 on an image of noise: the
    faintest path through the network counts. Where one position is compared with all, as by a
    global pooling, it is the whole image.

    Args:
        backbone: As for :func:`effective_receptive_field`.
        shape: Height and width of the image, pixels.
        stage: Which map. Defaults to -1, the last one.
        channels: Channels of the image. Defaults to 3.

    Returns:
        Top, left, bottom and right of the box around these pixels, the last two exclusive.

    Raises:
        ValueError: If no pixel has an influence.
    """
    backbone = copy.deepcopy(backbone).double()
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *shape, generator=generator, dtype=torch.float64).to(device)
    seen = _gradient(backbone, image, stage, 'signs', generator) > 0
    rows, columns = (torch.nonzero(seen.any(axis)).flatten().tolist() for axis in (1, 0))
    if not rows:
        raise ValueError('the gradient is zero everywhere: the map does not depend on the image')
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def smallest_square(contribution: np.ndarray, share: float) -> Reach:
    """Smallest square around the middle that holds a share of the contribution.

    Args:
        contribution: Array ``(H, W)``, not negative.
        share: From 0 to 1.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f'a share lies between 0 and 1, such as 0.5, but got {share}')
    height, width = contribution.shape
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    distance = np.maximum(rows[:, None], columns[None])
    held = np.bincount(distance.ravel(), weights=contribution.ravel()).cumsum()
    # The last bit of the sum is not to decide.
    radius = int(np.searchsorted(held, share * held[-1] * (1 - 1e-12)))
    side = 2 * radius + 1
    area = min(side, height) * min(side, width) / (height * width)
    return Reach(share, min(side, max(height, width)), area)


def backbone_settings(cfg: Config) -> dict:
    """Settings of the backbone of a config, also inside a tracker or semi-supervised detector.

    Raises:
        ValueError: If the config has none.
    """
    found = _search(cfg.get('model') or {}, 'backbone')
    if found is not None:
        return found
    parts = ', '.join(cfg.get('model') or {}) or 'nothing'
    raise ValueError(f'{cfg.filename}: no backbone in the model, which has {parts}')


def _search(settings: dict, key: str) -> dict | None:
    """The group of settings of that name which lies least deep; None if there is none."""
    waiting = [settings]
    while waiting:
        group = waiting.pop(0)
        if isinstance(group.get(key), dict):
            return group[key]
        waiting += [value for value in group.values() if isinstance(value, dict)]
    return None


def preprocessor_settings(cfg: Config) -> dict | None:
    """How the model of a config prepares images; None if the config does not say."""
    found = _search(cfg.get('model') or {}, PREPROCESSOR) or cfg.get(PREPROCESSOR)
    # That of a semi-supervised detector holds another one.
    return (_search(found, PREPROCESSOR) or found) if found else None


def as_the_model_sees(image: torch.Tensor, preprocessor: dict | None) -> torch.Tensor:
    """Images as a model's own preprocessor would hand them on.

    Args:
        image: ``(N, 3, H, W)``, red, green and blue, normalised by ImageNet's mean and deviation.
        preprocessor: Settings of the preprocessor; None leaves the images as they are.
    """
    if preprocessor is None:
        return image

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.as_tensor(values).to(image)[:, None, None]

    pixels = image * column(STD) + column(MEAN)
    if not any(preprocessor.get(key) for key in ('bgr_to_rgb', 'to_rgb')):
        pixels = pixels.flip(1)
    if preprocessor.get('mean') is None:
        return pixels
    return (pixels - column(preprocessor['mean'])) / column(preprocessor['std'])


def build_backbone(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """Build the backbone of a config, in evaluation mode.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        checkpoint: Weights of the backbone, or of a model around it. None leaves them random:
            what ``init_cfg`` names is not fetched.

    Raises:
        ValueError: If the checkpoint cannot be read, or lacks weights of the backbone.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    settings = backbone_settings(cfg)
    settings = {**settings, **{key: None for key in ('init_cfg', 'pretrained') if key in settings}}
    backbone = revert_sync_batchnorm(MODELS.build(settings))
    if checkpoint is None:
        with quiet():
            backbone.init_weights()
    else:
        try:
            weights = unwrap(CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'))
        except CheckpointError as error:
            raise ValueError(str(error)) from error
        weights = {without_wrappers(key): value for key, value in weights.items()}
        own = [key for key in weights if key.startswith('backbone.')]
        weights = {key.removeprefix('backbone.'): weights[key] for key in own or weights}
        load_all_weights(backbone, weights, checkpoint)
    # Alone: train() of mmdet's and mmseg's ResNet, which it calls, returns nothing.
    backbone.eval()
    return backbone.requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep mmengine from telling where each parameter comes from."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Subject:
    """A backbone to be measured.

    Attributes:
        name: Its name in tables and pictures.
        cfg: Its config.
        checkpoint: Its weights, None for random ones.
    """

    name: str
    cfg: Config
    checkpoint: str | None = None


@dataclass(frozen=True)
class Settings:
    """How fields are measured.

    Attributes:
        folder: Folder of images; None for noise.
        number: How many images.
        size: Side of the square images, pixels.
        stage: Index of the map.
        direction: ``'signs'`` or ``'sum'``, see :func:`effective_receptive_field`.
    """

    folder: str | None = None
    number: int = 8
    size: int = 1024
    stage: int = -1
    direction: str = 'signs'

    def describe_images(self) -> str:
        """What is measured on, in words."""
        side = f'{self.size} x {self.size}'
        if self.folder is None:
            return f'{self.number} images of random noise, {side} (--images DIR takes your own)'
        return f'up to {self.number} images of {self.folder}, {side}'


def measure_fields(
    subjects: Sequence[Subject],
    settings: Settings,
    cells: str | os.PathLike,
    device: torch.device | str = 'cpu',
) -> list[Field]:
    """Measure backbones one after the other; what was finished in an earlier run is read again.

    Shows its progress on stderr.

    Args:
        subjects: The backbones.
        settings: How they are measured.
        cells: Folder that keeps a file for each finished field.
        device: Where to compute. Defaults to the CPU.

    Raises:
        ValueError: If a backbone or an image cannot be had, see :func:`build_backbone` and
            :func:`effective_receptive_field`.
    """
    cells = Path(cells)
    cells.mkdir(parents=True, exist_ok=True)
    return [_measure_or_read(subject, settings, cells, device) for subject in subjects]


def _measure_or_read(
    subject: Subject, settings: Settings, cells: Path, device: torch.device | str
) -> Field:
    cell = cells / f'{_digest(subject, settings)}.npz'
    if cell.is_file():
        print(f'{subject.name}: measured before', file=sys.stderr)
        with np.load(cell) as kept:
            facts = json.loads(str(kept['facts']))
            facts['box'] = tuple(facts['box'])
            return Field(subject.name, contribution=kept['contribution'], **facts)
    field = measure_field(subject, settings, device)
    facts = asdict(field)
    del facts['name'], facts['contribution']
    # Under its name only when it is whole.
    partial = cell.with_suffix('.part.npz')
    np.savez_compressed(partial, contribution=field.contribution, facts=json.dumps(facts))
    partial.replace(cell)
    return field


def _digest(subject: Subject, settings: Settings) -> str:
    """A name for all that a field depends on."""
    files = [subject.checkpoint] if subject.checkpoint else []
    if settings.folder is not None and Path(settings.folder).is_dir():
        files += sorted(path for path in Path(settings.folder).rglob('*') if path.is_file())
    stats = [(str(path), os.stat(path)) for path in files if os.path.isfile(path)]
    facts = dict(
        scope=subject.cfg.get('default_scope'),
        backbone=backbone_settings(subject.cfg),
        preprocessor=preprocessor_settings(subject.cfg),
        files=[(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        checkpoint=subject.checkpoint,
        **asdict(settings),
    )
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def measure_field(
    subject: Subject, settings: Settings, device: torch.device | str = 'cpu'
) -> Field:
    """Measure one backbone, image by image. Random weights are the same in each run.

    Shows its progress on stderr.
    """
    torch.manual_seed(0)
    backbone = build_backbone(subject.cfg, subject.checkpoint).to(device)
    channels = image_channels(backbone)
    preprocessor = preprocessor_settings(subject.cfg) if channels == 3 else None
    images = [image for batch in _read(settings, channels) for image in batch.split(1)]

    def prepared(image: torch.Tensor) -> torch.Tensor:
        return as_the_model_sees(image, preprocessor).to(device)

    shape = (settings.size, settings.size)
    box = theoretical_field(backbone, shape, settings.stage, channels)
    print(subject.name, file=sys.stderr)
    contribution = effective_receptive_field(
        backbone,
        map(prepared, track_iter_progress(images, file=sys.stderr)),
        settings.stage,
        settings.direction,
    )
    with torch.no_grad():
        outputs = backbone(prepared(images[0]))
    number = 1 if isinstance(outputs, torch.Tensor) else len(outputs)
    return Field(
        name=subject.name,
        stage=settings.stage % number,
        stride=round(settings.size / feature_map(outputs, settings.stage).shape[2]),
        weights=subject.checkpoint or 'random',
        images=len(images),
        contribution=contribution,
        box=box,
    )


def _read(settings: Settings, channels: int) -> list[torch.Tensor]:
    """The images, as batches."""
    if settings.folder is None:
        return random_images(settings.size, settings.number, channels=channels)
    if channels != 3:
        raise ValueError(
            f'the backbone takes images of {channels} channels, a folder of pictures has 3: leave '
            '--images out to measure on noise'
        )
    return read_images([settings.folder], settings.size, settings.number)


def field_rows(fields: Sequence[Field]) -> list[list[str]]:
    """Lay fields out as the table of RepLKNet: side of the square and its share of the image."""
    rows = [['model', 'weights', 'map', 'theory', *(f'{share:.0%}' for share in SHARES)]]
    for field in fields:
        top, left, bottom, right = field.box
        theory = 'all' if field.is_cut_off() else f'{bottom - top} x {right - left}'
        reaches = [f'{reach.side} ({reach.area:.1%})' for reach in field.reaches()]
        weights = Path(field.weights).name
        rows.append([field.name, weights, f'{field.stage} (/{field.stride})', theory, *reaches])
    return rows


def field_records(fields: Sequence[Field], settings: Settings) -> dict:
    """All but the maps, for JSON."""
    records = []
    for field in fields:
        record = {key: value for key, value in vars(field).items() if key != 'contribution'}
        reaches = [asdict(reach) for reach in field.reaches()]
        records.append(dict(record, theory_cut_off=field.is_cut_off(), reaches=reaches))
    return dict(settings=asdict(settings), fields=records)


def draw_fields(path: str | os.PathLike, fields: Sequence[Field]) -> None:
    """Draw fields side by side on one scale, with their squares and the theoretical field.

    Args:
        path: The picture. Its folder is made.
        fields: What to draw.
    """
    columns = min(COLUMNS, len(fields))
    rows = -(-len(fields) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 3.9 * rows + 0.4), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    highest = max(field.contribution.max() for field in fields)
    norm = LogNorm(highest * FAINTEST, highest, clip=True)
    for axis, field in zip(axes.flat, fields, strict=False):
        image = axis.imshow(field.contribution, norm=norm, cmap='inferno')
        _draw_boxes(axis, field)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(image, ax=axes, label='share of the contribution, a pixel', shrink=0.8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_boxes(axis: Any, field: Field) -> None:
    """Draw the theoretical field and the squares of the effective one, and say what they are."""
    top, left, bottom, right = field.box
    theory = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top)
    theory.set(fill=False, edgecolor='white', linestyle='--', linewidth=1.2)
    axis.add_patch(theory)
    height, width = field.contribution.shape
    words = []
    for reach in field.reaches(DRAWN_SHARES):
        corner = (width // 2 - reach.side / 2, height // 2 - reach.side / 2)
        square = Rectangle(corner, reach.side, reach.side)
        square.set(fill=False, edgecolor='#58c7f0', linewidth=1)
        axis.add_patch(square)
        words.append(f'{reach.share:.0%} in {reach.side}')
    theory = 'the whole image' if field.is_cut_off() else f'{right - left} x {bottom - top}'
    name = field.name.replace(', ', '\n')
    axis.set_title(f'{name}\n{", ".join(words)}\ntheory: {theory}', fontsize=8)
