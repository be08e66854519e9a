from mmengine.registry import HOOKS
from runners import Part, runner_of
from torch import nn

from mmlska.engine import RandomWeightsHook
from mmlska.models import VAN


def warnings_before_training(backbone):
    runner = runner_of(Part(backbone=backbone))
    hook = HOOKS.build(dict(type='mmlska.RandomWeightsHook'))
    assert isinstance(hook, RandomWeightsHook)
    hook.before_train(runner)
    return runner.lines


def test_a_start_from_random_weights_is_told():
    (line,) = warnings_before_training(VAN('tiny', out_indices=(0,)))
    assert 'VAN trains from random weights' in line
    assert 'model.backbone.init_cfg.checkpoint=PATH' in line


def test_a_start_from_loaded_weights_needs_no_warning():
    backbone = VAN('tiny', out_indices=(0,))
    backbone.load_state_dict(VAN('tiny', out_indices=(0,)).state_dict())
    assert warnings_before_training(backbone) == []
    assert warnings_before_training(nn.Conv2d(3, 8, 1)) == []
