"""Layers added to a trained network leave all of its outputs as they are, to the bit."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from test_configs import ROOT, library

from mmlska.engine.config import load_config
from mmlska.engine.hooks.added_neck_hook import give_to_first_neck
from mmlska.models import IdentityStart

FRAGMENT = ROOT / 'configs' / '_base_' / 'plugins' / 'identity_start.py'
IN_RESNET = 'model = dict(backbone=dict(plugins=_base_.lska_in_resnet))'
ON_LEVELS = (
    'model = dict(neck=[_base_.model.neck, '
    'dict(_base_.lska_on_levels, in_channels={channels}, num_outs=3)])'
)
# Trained network, where the layers go, and how many there are.
CASES = {
    'mask-rcnn_r50': ('mmdet', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', IN_RESNET, 9),
    'semantic_fpn_r50': ('mmseg', f'{ROOT}/configs/_base_/models/fpn_r50.py', IN_RESNET, 9),
    'rtmdet_tiny': (
        'mmdet',
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        ON_LEVELS.format(channels=96),
        3,
    ),
    'yolox_tiny': (
        'mmdet',
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
        ON_LEVELS.format(channels=96),
        3,
    ),
}


def build(scope, settings):
    settings = copy.deepcopy(settings)
    settings.backbone.pop('init_cfg', None)
    settings.pop('pretrained', None)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings)


def flat(outputs):
    """All tensors of nested lists, in their order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


@pytest.fixture(scope='module', params=CASES)
def case(request, tmp_path_factory):
    """The network, trained as far as a test needs; the same with layers; its config."""
    scope, base, change, number = CASES[request.param]
    library(scope)
    if scope == 'mmdet':
        pytest.importorskip('mmcv.ops', reason='mmcv was built without its operators')
    path = tmp_path_factory.mktemp(request.param) / 'config.py'
    path.write_text(f'_base_ = [{base!r}, {str(FRAGMENT)!r}]\n{change}\n')
    stock = path.with_name('stock.py')
    stock.write_text(f'_base_ = [{base!r}]\n')
    cfg = load_config(path)
    torch.manual_seed(0)
    trained = build(scope, load_config(stock).model).eval()
    for name, buffer in trained.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
    return scope, trained, cfg, number


def test_outputs_are_equal_to_the_bit_and_the_factors_learn(case):
    scope, trained, cfg, number = case
    model = build(scope, cfg.model).eval()
    weights = copy.deepcopy(trained.state_dict())
    give_to_first_neck(model, weights)
    # As `load_from` does.
    _load_checkpoint_to_model(model, dict(state_dict=weights))
    layers = [module for module in model.modules() if isinstance(module, IdentityStart)]
    assert len(layers) == number

    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        # Two-stage detectors want samples beside the image; what their heads get is the pyramid.
        run = 'extract_feat' if hasattr(model, 'rpn_head') else 'forward'
        outputs, expected = (flat(getattr(m, run)(image)) for m in (model, trained))
    assert len(outputs) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))

    sum(out.square().sum() for out in flat(model.extract_feat(image))).backward()
    for layer in layers:
        assert torch.isfinite(layer.g.grad).all()
        assert layer.g.grad.any()


def test_the_factors_take_no_weight_decay(case):
    scope, _, cfg, number = case
    model = build(scope, cfg.model)
    own = cfg.get('optim_wrapper', {}).get('paramwise_cfg') or {}
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            paramwise_cfg=dict(own, **cfg.paramwise_without_flat_decay),
        ),
    )
    decay = {
        id(parameter): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    layers = [module for module in model.modules() if isinstance(module, IdentityStart)]
    assert [decay[id(layer.g)] for layer in layers] == [0] * number
    assert {decay[id(layer.attention.conv1.weight)] for layer in layers} == {0.05}
