"""Weights of a backbone of another library: copied, or an error, and never silence."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mmlska.models  # noqa: F401
from mmlska.checkpoint import CheckpointError
from mmlska.engine.hooks.random_weights_hook import RandomWeightsHook


class Detector(nn.Module):
    def __init__(self, init_cfg=None):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.backbone.init_cfg = init_cfg
        self.neck = nn.Conv2d(2, 2, 1)


def runner(model):
    return SimpleNamespace(model=model)


BAD = {
    'array': lambda x: np.zeros(x.shape, dtype=np.float32),
    'meta': lambda x: x.to('meta'),
    'sparse': lambda x: x.to_sparse(),
    'integer': lambda x: x.int(),
}


@pytest.mark.parametrize('kind', BAD)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_load_from_names_a_value_that_cannot_be_copied(kind, prefix):
    model = Detector()
    weights = {f'{prefix}{key}': value for key, value in model.backbone.state_dict().items()}
    weights[f'{prefix}0.weight'] = BAD[kind](weights[f'{prefix}0.weight'])
    with pytest.raises(CheckpointError, match=r'backbone\.0\.weight'):
        RandomWeightsHook().after_load_checkpoint(runner(model), {'state_dict': weights})


def test_a_bare_file_reaches_the_backbone():
    model = Detector()
    weights = dict(model.backbone.state_dict())
    RandomWeightsHook().after_load_checkpoint(runner(model), {'state_dict': weights})
    assert set(weights) == {f'backbone.{key}' for key in model.backbone.state_dict()}


@pytest.mark.parametrize('kind', BAD)
def test_init_cfg_names_a_value_that_cannot_be_copied(kind, tmp_path):
    path = str(tmp_path / 'a.pth')
    model = Detector(dict(type='Pretrained', checkpoint=path))
    weights = dict(model.backbone.state_dict())
    torch.save(weights, path)
    RandomWeightsHook().before_train(runner(model))
    torch.save({**weights, '1.weight': BAD[kind](weights['1.weight'])}, path)
    with pytest.raises(CheckpointError, match=r'1\.weight'):
        RandomWeightsHook().before_train(runner(model))


def test_init_cfg_of_another_model_is_told(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save({'layer1.weight': torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r'none of its weights.*layer1\.weight'):
        RandomWeightsHook().before_train(runner(Detector(dict(type='Pretrained', checkpoint=path))))
