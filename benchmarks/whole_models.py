"""Detectors and segmentors: one step on random images, and the evaluation of real ones."""

import contextlib
import copy
import functools
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import nn

from mmlska.deploy import fuse
from mmlska.engine.config import load_config

from .settings import ANNOTATIONS, Settings
from .subjects import Tensors, autocast, new_inductor, randomize_norms

# Of a random training image, and of an image that is evaluated.
OBJECTS, DETECTIONS = 8, 20


class ModelSubject:
    """A detector or segmentor.

    Args:
        settings (Settings): What is measured.
    """

    model: nn.Module

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.cfg = quiet_config(settings.config)

    def modules(self) -> dict[str, nn.Module]:
        """The model as it is, and as our side runs it."""
        return {'plain': self.model, 'ours': fuse(self.model) if self.settings.fuse else self.model}


class StepSubject(ModelSubject):
    """A detector or segmentor on random images: a step of the training, or the inference.

    A training step is preprocessing, forward, losses, backward and the optimizer's step with the
    learning rate 0, so that each step computes the same.

    Args:
        settings (Settings): What is measured.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        torch.manual_seed(0)
        self.model = build_model(self.cfg).train(settings.train).to(self.device)
        self.batch = self.make_batch()

    def make_batch(self) -> dict[str, Any]:
        """Random images with random objects, the same each time."""
        number, *shape = self.settings.shape
        if hasattr(self.model, 'decode_head'):
            return random_segments(number, shape, self.model.decode_head.num_classes)
        from mmdet.testing import demo_mm_inputs

        classes = number_of_classes(self.model)
        return demo_mm_inputs(number, tuple(shape), [OBJECTS] * number, classes, with_mask=True)

    def compiled(self, model: nn.Module) -> nn.Module:
        """The model with its backbone by ``torch.compile``."""
        model = copy.deepcopy(model)
        model.backbone.forward = torch.compile(model.backbone.forward, backend=new_inductor())
        return model

    def run(self, model: nn.Module) -> torch.Tensor | None:
        """One inference, or the forward pass of a training step; returns the loss of the latter."""
        # The regions that are trained on are drawn at random.
        torch.manual_seed(0)
        data = model.data_preprocessor(copy.deepcopy(self.batch), self.settings.train)
        if not self.settings.train:
            with torch.no_grad(), autocast(self.settings):
                model(**data, mode='predict')
            return None
        with autocast(self.settings):
            losses = model(**data, mode='loss')
        return model.parse_losses(losses)[0]

    def runner(self, model: nn.Module) -> Callable[[], object]:
        """What is timed."""
        if not self.settings.train:
            return functools.partial(self.run, model)
        settings = copy.deepcopy(self.cfg.optim_wrapper)
        settings.type, settings.optimizer.lr = 'OptimWrapper', 0.0
        optimizer = build_optim_wrapper(model, settings)
        return lambda: optimizer.update_params(self.run(model))

    def compare(self, model: nn.Module) -> Tensors:
        """The maps of the backbone and, in training, the loss and the backbone's gradients."""
        loss, maps = with_maps(model, lambda: self.run(model))
        if loss is None:
            return dict(outputs=maps)
        parameters = [p for p in model.backbone.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters)
        return dict(outputs=maps, loss=[loss.detach()], drawn_gradients=gradients)


class EvaluationSubject(ModelSubject):
    """The evaluation of a detector on images: reading, inference, and the metric.

    Its weights are random, with which nothing would pass the score threshold. It is set to 0, and
    the best ``DETECTIONS`` of each image are kept, which is about what a trained model finds.

    Args:
        settings (Settings): What is measured.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        number, _, *size = settings.shape
        point_to_data(self.cfg, settings.data, number, tuple(size))
        if 'rcnn' in (self.cfg.model.get('test_cfg') or {}):
            self.cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=DETECTIONS)
        torch.manual_seed(0)
        self.model = build_model(self.cfg).eval().to(self.device)
        self.dataset = DATASETS.build(self.cfg.val_dataloader.dataset)

    def run(self, model: nn.Module) -> dict[str, float]:
        """Evaluate all images once; returns the figures of the metric."""
        loader = Runner.build_dataloader(dict(self.cfg.val_dataloader, dataset=self.dataset))
        evaluator = Evaluator(copy.deepcopy(self.cfg.val_evaluator))
        evaluator.dataset_meta = self.dataset.metainfo
        # The COCO metric prints its table.
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            for batch in loader:
                with autocast(self.settings):
                    outputs = model.val_step(batch)
                evaluator.process(data_samples=outputs, data_batch=batch)
            return evaluator.evaluate(len(self.dataset))

    def runner(self, model: nn.Module) -> Callable[[], object]:
        """What is timed."""
        return functools.partial(self.run, model)

    def compare(self, model: nn.Module) -> Tensors:
        """The maps of the backbone for the last image."""
        return dict(outputs=with_maps(model, lambda: self.run(model))[1])


def quiet_config(name: str) -> Config:
    """Read a config; from then on only warnings are logged."""
    cfg = load_config(name)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    return cfg


def build_model(cfg: Config) -> nn.Module:
    """The model with random weights and random statistics, for one process."""
    cfg.model.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    randomize_norms(model)
    return model


def point_to_data(cfg: Config, data: str, number: int, size: tuple[int, int]) -> None:
    """Make the validation read the first images of a folder, to fit a height and a width."""
    loader = cfg.val_dataloader
    loader.batch_size, loader.num_workers, loader.persistent_workers = 1, 0, False
    loader.dataset.update(
        data_root=str(data),
        ann_file=ANNOTATIONS,
        data_prefix=dict(img='images/val/'),
        indices=number,
    )
    for step in loader.dataset.pipeline:
        if step.type.split('.')[-1] == 'Resize':
            step.scale = size[::-1]
    evaluators = cfg.val_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        evaluator.ann_file = f'{data}/{ANNOTATIONS}'


def with_maps(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, list[torch.Tensor]]:
    """Call a function; returns its result and the last maps of the model's backbone."""
    maps = []

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        maps[:] = [output.detach() for output in outputs]

    handle = model.backbone.register_forward_hook(keep)
    try:
        return run(), maps
    finally:
        handle.remove()


def random_segments(number: int, shape: Sequence[int], classes: int) -> dict[str, Any]:
    """Random images ``(C, H, W)`` with a random label at each position."""
    from mmseg.structures import SegDataSample

    random, (_, *size) = np.random.default_rng(0), shape
    inputs = [torch.from_numpy(random.integers(0, 256, shape, np.uint8)) for _ in range(number)]
    metainfo, samples = dict(img_shape=size, ori_shape=size, pad_shape=size), []
    for _ in inputs:
        labels = torch.from_numpy(random.integers(0, classes, (1, *size)))
        samples.append(SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=labels)))
    return dict(inputs=inputs, data_samples=samples)


def number_of_classes(model: nn.Module) -> int:
    """Classes that a detector tells apart."""
    if hasattr(model, 'roi_head'):
        head = model.roi_head.bbox_head
        return (head[0] if isinstance(head, nn.ModuleList) else head).num_classes
    return model.bbox_head.num_classes
