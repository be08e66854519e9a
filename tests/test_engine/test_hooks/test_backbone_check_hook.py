import pytest
import torch
from mmengine.registry import HOOKS
from torch import nn

from mmlska.engine import BackboneCheckHook, check_channels
from mmlska.models import VAN


class Part(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


def model(**parts):
    container = nn.Module()
    for name, part in parts.items():
        setattr(container, name, part)
    return container


def test_a_fitting_neck_passes():
    check_channels(model(backbone=VAN('tiny'), neck=Part(in_channels=[32, 64, 160, 256])))


def test_a_wrong_neck_is_named_with_the_right_value():
    wrong = model(backbone=VAN('tiny'), neck=Part(in_channels=[64, 128, 320, 512]))
    with pytest.raises(ValueError, match=r'neck.in_channels=\[64, .*Set .*=\[32, 64, 160, 256\]'):
        check_channels(wrong)


def test_of_several_necks_the_first_counts():
    necks = nn.Sequential(Part(in_channels=[64, 128]), Part(in_channels=256))
    with pytest.raises(ValueError, match=r'neck\.in_channels=\[64, 128\]'):
        check_channels(model(backbone=VAN('tiny', out_indices=(0, 1)), neck=necks))


def test_a_head_without_a_neck_is_checked_by_its_index():
    head = Part(in_channels=[32, 160], in_index=[0, 2])
    check_channels(model(backbone=VAN('tiny'), decode_head=head))
    with pytest.raises(ValueError, match=r'decode_head.in_channels=64 .*\[256\]'):
        check_channels(model(backbone=VAN('tiny'), decode_head=Part(in_channels=64, in_index=3)))


def test_other_backbones_are_passed_over():
    check_channels(model(backbone=nn.Conv2d(3, 8, 1), neck=Part(in_channels=[1, 2])))


def test_the_hook_is_registered_and_checks_before_the_run():
    hook = HOOKS.build(dict(type='mmlska.BackboneCheckHook'))
    assert isinstance(hook, BackboneCheckHook)
    runner = Part(model=model(backbone=VAN('tiny'), neck=Part(in_channels=[1])))
    with pytest.raises(ValueError, match='does not fit the backbone'):
        hook.before_run(runner)


def warnings_before_training(backbone):
    lines = []
    logger = Part()
    logger.__dict__['warning'] = lines.append
    runner = Part(model=model(backbone=backbone), logger=logger)
    BackboneCheckHook().before_train(runner)
    return lines


def test_a_start_from_random_weights_is_told():
    (line,) = warnings_before_training(VAN('tiny', out_indices=(0,)))
    assert 'VAN trains from random weights' in line
    assert 'model.backbone.init_cfg.checkpoint=PATH' in line


def test_a_start_from_loaded_weights_needs_no_warning():
    backbone = VAN('tiny', out_indices=(0,))
    backbone.load_state_dict(VAN('tiny', out_indices=(0,)).state_dict())
    assert warnings_before_training(backbone) == []
    assert warnings_before_training(nn.Conv2d(3, 8, 1)) == []


def test_a_built_detector_is_checked():
    pytest.importorskip('mmdet')
    from mmdet.models.necks import FPN

    detector = model(
        backbone=VAN('tiny').eval(),
        neck=FPN(in_channels=[32, 64, 160, 256], out_channels=8, num_outs=4),
    )
    check_channels(detector)
    assert len(detector.neck(detector.backbone(torch.rand(1, 3, 32, 32)))) == 4
