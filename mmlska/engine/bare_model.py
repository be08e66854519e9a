"""The model that a runner trains or tests, and the config options of its parts."""

import re

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def bare_model(runner: Runner) -> nn.Module:
    """The model of a runner without wrappers for distributed training or test-time augmentation."""
    return unwrapped(runner.model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers for distributed training or test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def config_path(name: str) -> str:
    """The config option, below ``model``, of a part of a model.

    Args:
        name (str): Name of the part in the model, such as ``roi_head.bbox_head``. Semi-supervised
            detectors make both a student and a teacher from their option ``detector``.
    """
    return re.sub(r'^(student|teacher)(?=\.|$)', 'detector', name)
