"""Evaluating an exported file as tools/test.py evaluates its model."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from mmlska.deploy.onnx_files import OnnxModel

from .config import DETECTION, SEGMENTATION, load_config, task_of
from .data_check import check_data
from .inference import split_pipeline, test_dataset
from .launch import build_runner, set_work_dir


def prepared_images(cfg: Config, paths: Iterable[str | Path]) -> Iterator[np.ndarray]:
    """Images as the model of a config gets them in tests, ``(1, 3, H, W)`` each."""
    init_default_scope(cfg.default_scope)
    loading, preparing = split_pipeline(test_dataset(cfg).pipeline)
    prepare = Compose([*loading, *preparing])
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    for path in paths:
        data = pseudo_collate([prepare(dict(img_path=str(path), img_id=0))])
        yield preprocessor(data, False)['inputs'].numpy()


def evaluate_file(
    config: str | Path, file: str | Path, options: dict[str, Any] | None = None
) -> dict[str, float]:
    """Figures of a detector or segmentor that an exported file computes.

    Args:
        config: The config with the test set and its metrics, or the name of a shipped one.
        file: What ``tools/deployment/export_onnx.py --end2end`` has written of its model, or a
            quantised copy.
        options: Overrides of the config by dotted key.

    Returns:
        dict[str, float]: The figures by name, as the metrics of the config call them; mmdet has
        none of a detector that finds nothing.

    Raises:
        ValueError: If the config is of another task, or the file of another model.
    """
    cfg = load_config(config, options)
    task = task_of(cfg)
    if task not in (DETECTION, SEGMENTATION):
        raise ValueError(
            f'{config}: files of detectors ({DETECTION}) and segmentors ({SEGMENTATION}) are '
            f'evaluated, not of {task}'
        )
    network = FileNetwork(file)
    set_work_dir(cfg, config, None)
    check_data(cfg, ('test',))
    # The weights are those in the file.
    cfg.load_from = None
    runner = build_runner(cfg)
    check_classes(network, runner.test_loop.dataloader.dataset.metainfo['classes'])
    if task == DETECTION:
        runner.model.predict = functools.partial(find_instances, runner.model, network)
    else:
        runner.model.encode_decode = functools.partial(segment, network)
    return runner.test()


class FileNetwork:
    """A file that goes on to the results, run on one image after the other.

    Args:
        file: What ``tools/deployment/export_onnx.py --end2end`` has written.

    Raises:
        ValueError: If it is no such file.
    """

    def __init__(self, file: str | Path) -> None:
        self.model = OnnxModel(file)
        self.told = self.model.metadata
        if not self.told.get('end_to_end'):
            raise ValueError(
                f'{str(file)!r} holds no results to evaluate: it has to be written by '
                'export_onnx.py --end2end'
            )

    def __call__(self, images: Tensor) -> Iterator[dict[str, Tensor]]:
        """Outputs by name for each of some images ``(N, 3, H, W)``, without the batch.

        Raises:
            ValueError: If they are larger than what the file takes.
        """
        filled = self._filled(images) if self.model.size else images
        for image in filled.cpu().split(1):
            yield {name: torch.from_numpy(value)[0] for name, value in self.model(image).items()}

    def _filled(self, images: Tensor) -> Tensor:
        (height, width), own = self.model.size, images.shape[2:]
        if own[0] > height or own[1] > width:
            raise ValueError(
                f'{self.model.file!r} takes images of {height}x{width}, the test pipeline makes '
                f'one of {own[0]}x{own[1]}: export it with --dynamic or that --size'
            )
        value = self.told['pad_after']['value']
        return F.pad(images, (0, width - own[1], 0, height - own[0]), value=value)


def check_classes(network: FileNetwork, classes: Sequence[str]) -> None:
    """Raise an error unless a file knows the classes of a data set."""
    known = network.told['classes']
    if list(known) != list(classes):
        raise ValueError(
            f'{network.model.file!r} is not of this config: it knows {len(known)} classes, '
            f'{known[0]!r} first, and the test set has {len(classes)}, {classes[0]!r} first'
        )


def segment(network: FileNetwork, inputs: Tensor, batch_img_metas: Sequence[dict]) -> Tensor:
    """Logits ``(N, C, H, W)``, in place of a segmentor's ``encode_decode``."""
    height, width = inputs.shape[2:]
    return torch.stack([found['logits'][:, :height, :width] for found in network(inputs)])


def find_instances(
    model: nn.Module, network: FileNetwork, inputs: Tensor, samples: Sequence[BaseDataElement]
) -> list[BaseDataElement]:
    """What a file finds in images, in place of the ``predict`` of a detector."""
    results = [
        in_original(model, found, sample.metainfo)
        for found, sample in zip(network(inputs), samples, strict=True)
    ]
    return model.add_pred_to_datasample(samples, results)


def in_original(model: nn.Module, found: Mapping[str, Tensor], meta: Mapping) -> InstanceData:
    """Detections of one image as mmdet keeps them, in pixels of the original."""
    is_found = found['labels'] >= 0
    boxes, scores, labels = (found[name][is_found] for name in ('boxes', 'scores', 'labels'))
    height, width = meta['img_shape'][:2]
    # What was filled up is no part of the image.
    boxes = torch.minimum(boxes, boxes.new_tensor([width, height] * 2))
    instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    if 'masks' not in found:
        instances.bboxes /= boxes.new_tensor(meta['scale_factor']).repeat(2)
        return instances
    head = model.roi_head.mask_head
    # It takes what comes before the sigmoid, of every class.
    classes = 1 if head.class_agnostic else head.num_classes
    masks = found['masks'][is_found].logit().unsqueeze(1).expand(-1, classes, -1, -1)
    (pasted,) = head.predict_by_feat(
        [masks], [instances], [meta], model.test_cfg.rcnn, rescale=True
    )
    return pasted
