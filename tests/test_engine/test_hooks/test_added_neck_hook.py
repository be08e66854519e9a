from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from torch import nn

from mmlska.engine import AddedNeckHook, give_to_first_neck


def model(neck):
    container = nn.Module()
    container.backbone = nn.Linear(2, 2)
    container.neck = neck
    return container


LONE = nn.Linear(2, 2)
SEVERAL = nn.Sequential(nn.Linear(2, 2), nn.Identity())


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_the_weights_of_a_lone_neck_go_to_the_first_of_several(prefix):
    weights = {f'{prefix}{key}': value for key, value in model(LONE).state_dict().items()}
    give_to_first_neck(model(SEVERAL), weights)
    assert set(weights) == {
        f'{prefix}{name}.{kind}' for name in ('backbone', 'neck.0') for kind in ('weight', 'bias')
    }
    assert weights[f'{prefix}neck.0.weight'] is not None


@pytest.mark.parametrize(('source', 'target'), [(SEVERAL, SEVERAL), (LONE, LONE), (SEVERAL, LONE)])
def test_other_weights_are_left_as_they_are(source, target):
    weights = model(source).state_dict()
    kept = list(weights)
    give_to_first_neck(model(target), weights)
    assert list(weights) == kept


def test_a_model_without_a_neck_is_passed_over():
    weights = {'neck.weight': torch.zeros(1)}
    give_to_first_neck(nn.Linear(1, 1), weights)
    assert list(weights) == ['neck.weight']


@pytest.mark.parametrize('wrapper', [None, 'state_dict'])
def test_the_hook_is_registered_and_renames_what_a_runner_loads(wrapper):
    hook = HOOKS.build(dict(type='mmlska.AddedNeckHook'))
    assert isinstance(hook, AddedNeckHook)
    weights = dict(model(LONE).state_dict())
    checkpoint = weights if wrapper is None else {wrapper: weights, 'meta': {}}
    target = model(SEVERAL)
    hook.after_load_checkpoint(SimpleNamespace(model=target), checkpoint)
    target.load_state_dict(weights)
    assert torch.equal(target.neck[0].weight, LONE.weight)
