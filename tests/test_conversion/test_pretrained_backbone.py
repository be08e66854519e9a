"""ResNets of mmdet and mmseg from weights of other codebases: all of them, or the way to it."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from test_configs import library

from mmlska.checkpoint import CheckpointError
from mmlska.checkpoint.resnet_naming import eca_kernels, explain_resnet, is_of_timm, to_resnet
from mmlska.conversion import PretrainedBackbone
from mmlska.engine.weights import check_init_cfg

sys.path.append(str(Path(__file__).parents[1] / 'test_checkpoint'))
import foreign


def eca_plugins(*kernels):
    """ECA of a kernel size by stage after the last convolution of each bottleneck."""
    return [
        dict(
            cfg=dict(type='mmlska.ECA', kernel_size=kernel),
            stages=tuple(i == stage for i in range(4)),
            position='after_conv3',
        )
        for stage, kernel in enumerate(kernels)
    ]


OFFICIAL = dict(type='ResNet', plugins=eca_plugins(3, 5, 5, 7))
TIMM = dict(type='ResNetV1d', plugins=eca_plugins(5, 5, 5, 7))
CASES = {'official_eca_resnet50': OFFICIAL, 'timm_ecaresnet50d': TIMM}


def build(settings, scope='mmdet', **more):
    library(scope)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(dict(depth=50, **settings, **more))


def light(name):
    """Weights under the names and in the shapes of a foreign model, of one number each."""
    shapes = foreign.shapes(name)
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def unfilled(settings, **more):
    """A backbone of shapes alone, for what is refused."""
    with torch.device('meta'):
        return build(settings, **more)


def saved(weights, folder):
    path = str(folder / 'weights.pth')
    torch.save(weights, path)
    return path


def started(settings, weights, folder, scope='mmdet', **more):
    """A backbone with the weights of a file."""
    init_cfg = dict(type='mmlska.PretrainedBackbone', checkpoint=saved(weights, folder), **more)
    model = build(settings, scope, init_cfg=init_cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    ('name', 'scope'), [('official_eca_resnet50', 'mmseg'), ('timm_ecaresnet50d', 'mmdet')]
)
def test_every_weight_has_its_place(name, scope, tmp_path):
    weights = foreign.weights(name)
    state = started(CASES[name], weights, tmp_path, scope).state_dict()
    expected = {key: value for key, value in to_resnet(weights).items() if 'fc.' not in key}
    assert set(state) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


def test_the_official_names_need_no_translation():
    names = foreign.shapes('official_eca_resnet50')
    assert not is_of_timm(names)
    assert list(to_resnet(names)) == list(names)


def test_plugins_that_the_file_lacks_and_stages_that_are_not_built(tmp_path):
    weights = {k: v for k, v in light('official_eca_resnet50').items() if 'eca' not in k}
    # As the C4 detectors build it.
    c4 = dict(OFFICIAL, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
    c4['plugins'] = [dict(cfg=dict(type='mmlska.ECA'), position='after_conv3')]
    state = started(c4, weights, tmp_path).state_dict()
    assert not state['layer3.5.conv3.weight'].any()
    assert state['layer3.5.eca.conv.weight'].any()


@pytest.mark.parametrize(
    ('name', 'settings', 'told'),
    [
        ('official_eca_resnet50', dict(type='ResNet'), "type='ResNet', depth=50, plugins="),
        ('official_eca_resnet50', TIMM, 'K=3, 5, 5, 7 by stage'),
        ('timm_ecaresnet50d', OFFICIAL, "type='ResNetV1d', depth=50"),
        ('timm_ecaresnet26t', TIMM, r'2, 2, 2, 2 bottlenecks, a stem of 24, 32, 64 channels'),
        ('timm_ecaresnetlight', OFFICIAL, r'1, 1, 11, 3 bottlenecks, pooling before'),
        ('timm_eca_resnet33ts', OFFICIAL, r"of no ResNet: use timm's model itself.*TIMMBackbone"),
    ],
)
def test_what_does_not_fit_names_the_way(name, settings, told, tmp_path):
    initialise = PretrainedBackbone(saved(light(name), tmp_path))
    with pytest.raises(CheckpointError, match=told):
        initialise(unfilled(settings))


def test_pruned_bottlenecks_are_told():
    weights = to_resnet(light('timm_ecaresnet50d'))
    weights['layer1.0.conv1.weight'] = weights['layer1.0.conv1.weight'][:47]
    assert 'pruned' in explain_resnet(weights)


def test_nothing_is_loaded_where_something_does_not_fit(tmp_path):
    weights = light('official_eca_resnet50')
    del weights['layer2.0.conv1.weight']
    model = build(OFFICIAL)
    before = model.state_dict()['conv1.weight'].clone()
    with pytest.raises(CheckpointError, match=r'1 missing in the checkpoint: layer2\.0\.conv1'):
        PretrainedBackbone(saved(weights, tmp_path))(model)
    assert torch.equal(model.state_dict()['conv1.weight'], before)


def test_a_prefix_is_taken_off(tmp_path):
    weights = light('official_eca_resnet50')
    inside = {f'module.backbone.{key}': value for key, value in weights.items()}
    state = started(OFFICIAL, inside, tmp_path, prefix='backbone').state_dict()
    assert not state['conv1.weight'].any()


@pytest.mark.parametrize(
    ('name', 'settings', 'told'),
    [
        ('timm_ecaresnet50d', TIMM, 'bears the names of timm.*PretrainedBackbone'),
        ('official_eca_resnet50', dict(OFFICIAL, in_channels=1), r'in_channels=HOW.*sum'),
        (
            'official_eca_resnet50',
            dict(type='ResNet', plugins=eca_plugins(5, 5, 5, 7)),
            r'layer1\.0\.eca\.conv\.weight \(checkpoint \(1, 1, 3\), model \(1, 1, 5\)\)',
        ),
    ],
)
def test_the_stock_initialisation_does_not_pass_over_them(name, settings, told, tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=saved(light(name), tmp_path))
    model = unfilled(settings, init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match=told):
        check_init_cfg(model)


@torch.no_grad()
def test_a_grey_image_gives_what_its_triple_gave(tmp_path):
    weights = build(dict(type='ResNet')).state_dict()
    convert = dict(in_channels='sum')
    model = started(dict(type='ResNet', in_channels=1), weights, tmp_path, convert=convert)
    old = started(dict(type='ResNet'), weights, tmp_path)
    grey = torch.rand(1, 1, 32, 32).double()
    for part in (model, old):
        # Not chained: train() of mmdet's ResNet returns nothing.
        part.double().eval()
    for new, expected in zip(model(grey), old(grey.expand(1, 3, 32, 32)), strict=True):
        assert (new - expected).abs().max() < 1e-6 * expected.abs().max()


def test_the_stem_of_a_deep_resnet_is_found_by_its_shape(tmp_path):
    weights = light('timm_ecaresnet50d')
    weights['conv1.0.weight'] = torch.rand(32, 3, 3, 3)
    convert = dict(in_channels='zero')
    model = started(dict(TIMM, in_channels=4), weights, tmp_path, convert=convert)
    stem = model.state_dict()['stem.0.weight']
    assert torch.equal(stem[:, :3], weights['conv1.0.weight'])
    assert not stem[:, 3].any()


def test_another_conversion_is_refused():
    with pytest.raises(ValueError, match='it is a dict with in_channels, one of sum, mean'):
        PretrainedBackbone('a.pth', convert=dict(kernel_size=7))


@torch.no_grad()
def test_the_outputs_are_those_of_timm(tmp_path):
    timm = foreign.require('timm')
    theirs = timm.create_model('ecaresnet50d', features_only=True, out_indices=(1, 2, 3, 4))
    for name, buffer in theirs.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.1)
    kernels = eca_kernels(to_resnet(theirs.state_dict()))
    assert kernels == [5, 5, 5, 7]
    model = started(TIMM, theirs.state_dict(), tmp_path)
    model.eval()
    images = torch.randn(1, 3, 96, 80)
    for ours, expected in zip(model(images), theirs.eval()(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
