"""Evaluating an exported file as tools/test.py evaluates its model."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmlska.deploy.onnx_files import OnnxModel

from .config import SEGMENTATION, load_config, task_of
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
    """Figures of a segmentor whose logits an exported file computes.

    Args:
        config: The config with the test set, or the name of a shipped one.
        file: What ``tools/deployment/export_onnx.py --end2end`` has written of its model, or a
            quantised copy.
        options: Overrides of the config by dotted key.

    Raises:
        ValueError: If the config is not of a segmentor.
    """
    cfg = load_config(config, options)
    if task_of(cfg) != SEGMENTATION:
        raise ValueError(f'{config}: files of segmentors are evaluated, not of {task_of(cfg)}')
    set_work_dir(cfg, config, None)
    check_data(cfg, ('test',))
    # The weights are those in the file.
    cfg.load_from = None
    runner = build_runner(cfg)
    model = OnnxModel(file)

    def encode_decode(inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        return torch.from_numpy(model(inputs.cpu())['logits']).to(inputs.device)

    runner.model.encode_decode = encode_decode
    return runner.test()
