import pytest
import torch
from mmengine.registry import HOOKS
from runners import runner_of
from torch import nn

from mmlska.engine import WholeWeightsHook


def load(model, weights):
    runner = runner_of(model)
    runner.cfg = dict(load_from='a.pth')
    hook = HOOKS.build(dict(type='mmlska.WholeWeightsHook'))
    assert isinstance(hook, WholeWeightsHook)
    hook.after_load_checkpoint(runner, weights)


@pytest.mark.parametrize('wrapper', [None, 'state_dict'])
def test_whole_weights_reach_the_model(wrapper):
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    weights = source.state_dict()
    load(model, weights if wrapper is None else {wrapper: weights, 'meta': {}})
    assert torch.equal(model.weight, source.weight)


def test_a_checkpoint_that_lacks_weights_is_refused_by_its_name():
    weights = nn.Linear(2, 2).state_dict()
    del weights['bias']
    with pytest.raises(ValueError, match=r"checkpoint 'a\.pth' is not.*lacks 1 weights \(bias\)"):
        load(nn.Linear(2, 2), weights)
