"""Shipped configs, cut down to a few iterations over small images: only sizes and length change."""

import math
from typing import Any

import torch
from generated_data import innermost
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

SIDE = 96
BATCH = 2


def shrink(settings: Any) -> Any:
    """The steps of a pipeline with all sizes of images replaced."""
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(shrink, settings))
    if not isinstance(settings, dict):
        return settings
    # Mosaics of four images have a margin of half a side, which YOLOX crops.
    small = dict.fromkeys(('scale', 'img_scale', 'crop_size', 'size'), (SIDE, SIDE))
    small['border'] = (-SIDE // 2, -SIDE // 2)
    small['scales'] = [(SIDE, SIDE)]
    return {key: small.get(key, shrink(value)) for key, value in settings.items()}


def small_task(model: dict) -> None:
    """Lower the number of regions and the size of crops in a model's settings.

    The regions cost most of the time, and no layer depends on how many there are.
    """
    if 'roi_head' in model:
        model.train_cfg.rpn_proposal.max_per_img = 100
        model.train_cfg.rcnn.sampler.num = 32
    preprocessor = model.get('data_preprocessor', {})
    if 'size' in preprocessor:
        preprocessor.size = (SIDE, SIDE)
    # YOLOX draws another size every few iterations, which costs more than it shows.
    preprocessor.pop('batch_augments', None)


def cut_down(cfg: Config, iterations: int, workers: int = 0) -> Config:
    """Keep the config's recipe for a few iterations, without evaluation and checkpoints.

    The warm-up is left out: its first steps would be too small to see. Weights that have to be
    downloaded stay random.
    """
    loader = cfg.train_dataloader
    innermost(loader.dataset).indices = BATCH * iterations
    loader.dataset.pipeline = shrink(loader.dataset.pipeline)
    innermost(loader.dataset).pipeline = shrink(innermost(loader.dataset).pipeline)
    loader.merge(dict(batch_size=BATCH, num_workers=workers))
    if not workers:
        loader.persistent_workers = False
    for split in ('val', 'test'):
        cfg.update({f'{split}_dataloader': None, f'{split}_cfg': None, f'{split}_evaluator': None})
    length = dict(max_iters=iterations) if 'max_iters' in cfg.train_cfg else dict(max_epochs=1)
    cfg.train_cfg.merge(length)
    cfg.pop('param_scheduler', None)
    if '://' in ((cfg.model.backbone.get('init_cfg') or {}).get('checkpoint') or ''):
        cfg.model.backbone.pop('init_cfg')
    small_task(cfg.model)
    cfg.default_hooks.checkpoint = None
    return cfg


class Losses(Hook):
    """Keeps the loss of each iteration."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


def train(cfg: Config, *hooks: Hook) -> Runner:
    """Train by a config that was cut down; every loss is finite."""
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    kept = Losses()
    for hook in (kept, *hooks):
        runner.register_hook(hook)
    runner.train()
    assert kept.losses and all(math.isfinite(loss) for loss in kept.losses), kept.losses
    runner.losses = kept.losses
    return runner
