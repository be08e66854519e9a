"""The ways weights take into a model, and what the tests of them share."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from torch import nn

from mmlska.checkpoint.reading import KNOWS_SAFE_GLOBALS

needs_safe_globals = pytest.mark.skipif(
    not KNOWS_SAFE_GLOBALS, reason='before PyTorch 2.6 mmengine reads, and runs what it must'
)


def fill(model):
    """Give the model values none of which is an initial one."""
    for i, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + i)
    return model


def same(first, second):
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in first.state_dict().items())


def log_of(function):
    """The lines that mmengine's current logger receives, whatever level it was given before."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        function()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return lines


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(4, 4, 1)


def by_load_state_dict(model, checkpoint, tmp_path):
    model.load_state_dict(checkpoint)


def by_init_cfg(model, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / 'weights.pth')
    model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model.init_weights()


def by_load_from(model, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / 'weights.pth.tar')
    load_checkpoint(Detector(model), str(tmp_path / 'weights.pth.tar'))


ROUTES = [by_load_state_dict, by_init_cfg, by_load_from]
