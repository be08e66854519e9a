"""Layers added to a trained network leave all of its outputs as they are, to the bit."""

import copy
import re
from typing import NamedTuple

import pytest
import torch
from generated_data import innermost
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from script_runs import new_managers
from short_runs import cut_down, train
from test_configs import ROOT, library
from test_short_training import detection_data

from mmlska.engine.config import load_config
from mmlska.engine.hooks.added_neck_hook import give_to_first_neck
from mmlska.engine.hooks.new_parts_hook import compare_parts
from mmlska.models import IdentityStart

FRAGMENTS = ROOT / 'configs' / '_base_' / 'finetune'
ON_LEVELS = 'model = dict(neck=[_base_.model.neck, dict(_base_.levels, in_channels=96)])'


class Case(NamedTuple):
    """A trained network, the fragment that adds layers to it, and how many these are."""

    scope: str
    base: str
    fragment: str
    number: int
    more: str = ''


MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
CASES = {
    'mask-rcnn_r50': Case('mmdet', MASK_RCNN, 'resnet', 9),
    'semantic_fpn_r50': Case('mmseg', f'{ROOT}/configs/_base_/models/fpn_r50.py', 'resnet', 9),
    'rtmdet_tiny': Case(
        'mmdet', 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'rtmdet', 3, ON_LEVELS
    ),
    'yolox_tiny': Case('mmdet', 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 'yolox', 3, ON_LEVELS),
}


def fine_tuning_config(case, folder, more=''):
    """A user's config, and that of the trained network without the layers."""
    fragment = str(FRAGMENTS / f'{case.fragment}.py')
    path, stock = folder / 'fine_tuning.py', folder / 'stock.py'
    lines = [f'_base_ = [{case.base!r}, {fragment!r}]', '_base_.merge(_base_.finetune)', case.more]
    path.write_text('\n'.join([*lines, more]))
    stock.write_text(f'_base_ = [{case.base!r}]\n')
    return load_config(path), load_config(stock)


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
    """The network, trained as far as a test needs; the config with layers; their number."""
    found = CASES[request.param]
    library(found.scope)
    if found.scope == 'mmdet':
        pytest.importorskip('mmcv.ops', reason='mmcv was built without its operators')
    cfg, stock = fine_tuning_config(found, tmp_path_factory.mktemp(request.param))
    torch.manual_seed(0)
    trained = build(found.scope, stock.model).eval()
    for name, buffer in trained.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
    return found.scope, trained, cfg, found.number


def test_outputs_are_equal_to_the_bit_and_the_factors_learn(case):
    scope, trained, cfg, number = case
    model = build(scope, cfg.model).eval()
    weights = copy.deepcopy(trained.state_dict())
    give_to_first_neck(model, weights)
    # As `load_from` does.
    _load_checkpoint_to_model(model, dict(state_dict=weights))
    named = {name: m for name, m in model.named_modules() if isinstance(m, IdentityStart)}
    assert len(named) == number
    # What is told to be new are the layers, and nothing else.
    new, lacking = compare_parts(model, weights)
    assert lacking == []
    assert new == (['neck.1'] if 'neck.1.levels.0' in named else list(named))
    layers = list(named.values())

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
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
            paramwise_cfg=cfg.optim_wrapper.paramwise_cfg,
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


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mask-rcnn_r50', 'rtmdet_tiny', 'yolox_tiny'])
def test_a_step_of_fine_tuning_moves_the_factors(name, scenes, tmp_path):
    library('mmdet')
    pytest.importorskip('mmcv.ops', reason='mmcv was built without its operators')
    weights, fragment = str(tmp_path / 'trained.pth'), CASES[name].fragment
    cfg, stock = fine_tuning_config(CASES[name], tmp_path, f'load_from = {weights!r}')
    detection_data(stock, scenes)
    innermost(cfg.train_dataloader.dataset).merge(detection_data(cfg, scenes))
    torch.save(dict(state_dict=build('mmdet', stock.model).state_dict()), weights)
    cfg.work_dir = str(tmp_path / 'work_dir')
    with new_managers():
        runner = train(cut_down(cfg, 1))
    factors = [m.g for m in runner.model.modules() if isinstance(m, IdentityStart)]
    assert len(factors) == CASES[name].number
    assert all(g.any() for g in factors)
    (log,) = (tmp_path / 'work_dir').glob('*/*.log')
    (told,) = [line for line in log.read_text().splitlines() if 'new beside the checkpoint' in line]
    assert ('9 (backbone.layer3.0' if fragment == 'resnet' else '1 (neck.1') in told


# A config of each family with added layers, and the parts that its trained network lacks. A VAN
# tells of its own plugins.
FAMILIES = {
    'mask-rcnn_r50-eca_fpn_1x_coco': r'backbone\.layer\d\.\d\.eca',
    'fpn_r50-eca_4xb4-80k_ade20k-512x512': r'backbone\.layer\d\.\d\.eca',
    'retinanet_r50-context_fpn_1x_coco': r'backbone\.layer\d\.\d\.context_aggregation',
    'retinanet_r50_fpn-scp_1x_coco': r'neck\.1',
    'retinanet_van-lska-tiny-context_fpn_1x_coco': None,
    'rtmdet_tiny-lska_8xb32-300e_coco': r'neck\.1',
    'yolox_tiny-eca_8xb8-300e_coco': r'neck\.1',
}


@pytest.mark.parametrize('name', FAMILIES)
def test_the_layers_of_a_family_are_all_that_a_trained_network_lacks(name):
    library('mmseg' if 'ade20k' in name else 'mmdet')
    cfg = load_config(name)
    stock = copy.deepcopy(cfg.model)
    stock.backbone.pop('plugins', None)
    stock.neck = stock.neck[0] if isinstance(stock.neck, list) else stock.neck
    with torch.device('meta'):
        model, trained = (build(cfg.default_scope, settings) for settings in (cfg.model, stock))
    weights = trained.state_dict()
    give_to_first_neck(model, weights)
    new, lacking = compare_parts(model, weights)
    assert lacking == []
    assert bool(new) == bool(FAMILIES[name])
    assert all(re.fullmatch(FAMILIES[name], part) for part in new)
