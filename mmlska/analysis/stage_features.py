"""How the channels of each stage of a backbone respond to image files, averaged over the map."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.utils import ProgressBar
from torch import nn

from mmlska.engine.inference import read_image

from .corrupted_evaluation import file_hash
from .receptive_field import backbone_settings, build_backbone

BATCH_SIZE = 16


def normalization(cfg: Config) -> tuple[np.ndarray, np.ndarray, bool]:
    """Mean and standard deviation of the channels that a config subtracts and divides by.

    Returns:
        Mean ``(C,)``, deviation ``(C,)``, and whether the channels are red, green and blue, else
        blue, green and red.
    """
    settings = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor')
    settings = settings or {}
    while isinstance(settings.get('data_preprocessor'), dict):
        settings = settings['data_preprocessor']
    mean = np.array(settings.get('mean') or [0.0] * 3, dtype=np.float32)
    std = np.array(settings.get('std') or [1.0] * 3, dtype=np.float32)
    return mean, std, bool(settings.get('bgr_to_rgb') or settings.get('to_rgb'))


def read_batch(files: Sequence[Path], size: int, cfg: Config) -> torch.Tensor:
    """Images as the backbone of a config gets them, ``(N, 3, size, size)``.

    They are squeezed to the square: a crop could lose the cue.

    Raises:
        UnreadableImageError: If a file is no image.
        ValueError: If the config is for images of other channels.
    """
    mean, std, is_rgb = normalization(cfg)
    if mean.size not in (1, 3):
        raise ValueError(f'{cfg.filename}: for images of {mean.size} channels, pictures have 3')
    images = []
    for file in files:
        pixels = mmcv.imresize(read_image(file), (size, size))
        pixels = pixels if is_rgb else pixels[..., ::-1]
        images.append((pixels - mean) / std)
    return torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2)


def pooled_maps(outputs: object) -> list[torch.Tensor]:
    """Mean over the positions of each map that a backbone returned: vectors ``(N, C)``.

    Raises:
        TypeError: If it returned something else than maps ``(N, C, H, W)`` or vectors.
    """
    maps = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    pooled = []
    for one in maps if isinstance(maps, (list, tuple)) else [maps]:
        if not isinstance(one, torch.Tensor) or one.ndim not in (2, 4):
            shape = tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__
            raise TypeError(f'a backbone returns maps (N, C, H, W) or vectors (N, C), got {shape}')
        pooled.append(one if one.ndim == 2 else one.mean((2, 3)))
    return pooled


def stage_features(
    backbone: nn.Module,
    cfg: Config,
    files: Sequence[Path],
    size: int = 224,
    device: torch.device | str = 'cpu',
) -> list[np.ndarray]:
    """Responses of each stage to image files. Shows its progress on stderr.

    Args:
        backbone: What maps images to one map or a sequence of maps.
        cfg: Its config, which tells how images are normalised.
        files: The images.
        size: Side to which they are scaled, pixels. Defaults to 224.
        device: Where to compute. Defaults to the CPU.

    Returns:
        Of each stage an array ``(files, channels)``.

    Raises:
        TypeError: If the backbone returns no maps.
        UnreadableImageError: If a file is no image.
        ValueError: If there is no file.
    """
    if not files:
        raise ValueError('features need at least one image')
    backbone = backbone.to(device)
    batches = []
    bar = ProgressBar(len(files), file=sys.stderr)
    for start in range(0, len(files), BATCH_SIZE):
        images = read_batch(files[start : start + BATCH_SIZE], size, cfg).to(device)
        with torch.no_grad():
            batches.append([one.cpu().numpy() for one in pooled_maps(backbone(images))])
        bar.update(len(images))
    print(file=sys.stderr)
    return [np.concatenate(stage) for stage in zip(*batches, strict=True)]


def kept_features(
    cfg: Config,
    checkpoint: str,
    files: Sequence[Path],
    folder: str | Path,
    size: int = 224,
    device: torch.device | str = 'cpu',
) -> list[np.ndarray]:
    """Responses of the backbone of a config; what an earlier run computed is read again.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        checkpoint: Weights of its model, or of the backbone alone.
        files: The images.
        folder: Folder that keeps a file for each finished set of features.
        size: Side to which images are scaled, pixels. Defaults to 224.
        device: Where to compute. Defaults to the CPU.

    Returns:
        Of each stage an array ``(files, channels)``.

    Raises:
        ValueError: If the checkpoint is not of this backbone.
    """
    facts = dict(
        backbone=backbone_settings(cfg),
        preprocessor=[str(part) for part in normalization(cfg)],
        checkpoint=file_hash(checkpoint),
        files=[(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files],
        size=size,
    )
    text = json.dumps(facts, sort_keys=True, default=str)
    kept = Path(folder) / f'{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz'
    if kept.is_file():
        with np.load(kept) as content:
            return [content[f'stage{i}'] for i in range(len(content.files))]
    found = stage_features(build_backbone(cfg, checkpoint), cfg, files, size, device)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Under its name only when it is whole.
    partial = kept.with_suffix('.part.npz')
    np.savez_compressed(partial, **{f'stage{i}': stage for i, stage in enumerate(found)})
    partial.replace(kept)
    return found
