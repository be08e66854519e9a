import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn
from torch_versions import compiles

from mmlska.models import ECA, LSKA, ContextAggregation, PyramidAttention, SpatialContextPyramid

SHAPES = [(16, 12), (8, 6), (4, 3), (2, 2), (1, 1)]


def pyramid(channels=8, number=5):
    return tuple(torch.randn(2, channels, *SHAPES[i]) for i in range(number))


def scatter(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_each_level_has_a_layer_of_its_own():
    neck = scatter(PyramidAttention(dict(type='LSKA', kernel_size=7), in_channels=8, num_outs=5))
    inputs = pyramid()
    outs = neck(inputs)
    assert isinstance(outs, tuple)
    for x, out, level in zip(inputs, outs, neck.levels, strict=True):
        assert isinstance(level, LSKA)
        assert torch.equal(out, level(x))
    assert len({id(parameter) for parameter in neck.parameters()}) == 5 * 10


def test_options_reach_the_layer():
    neck = PyramidAttention(dict(type='ECA', kernel_size=9), in_channels=8, num_outs=2)
    assert [level.kernel_size for level in neck.levels] == [9, 9]


def test_channels_may_differ_by_level():
    neck = PyramidAttention(dict(type='ECA'), in_channels=[64, 256, 2048], num_outs=3)
    assert [level.kernel_size for level in neck.levels] == [3, 5, 7]
    inputs = [torch.rand(1, channels, 3, 4) for channels in (64, 256, 2048)]
    assert [out.shape for out in neck(inputs)] == [x.shape for x in inputs]


@pytest.mark.parametrize(
    ('scope', 'name'),
    [('mmdet', 'ECA'), ('mmseg', 'mmlska.ECA'), ('mmdet', ECA), ('mmengine', 'ECA')],
)
def test_types_are_found_in_every_default_scope(scope, name):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    settings = dict(
        type='mmlska.PyramidAttention', attention=dict(type=name), in_channels=8, num_outs=1
    )
    with DefaultScope.overwrite_default_scope(scope):
        neck = ROOT_MODELS.build(settings)
    assert isinstance(neck.levels[0], ECA)


def test_its_default_is_the_pyramid_of_catnet():
    keys = SpatialContextPyramid(256).state_dict().keys()
    assert keys == PyramidAttention(in_channels=256, num_outs=5).state_dict().keys()
    neck = SpatialContextPyramid(8, num_outs=3, reduction=2)
    assert all(isinstance(level, ContextAggregation) for level in neck.levels)
    assert [level.v.out_channels for level in neck.levels] == [4, 4, 4]


def test_a_new_context_pyramid_is_the_identity():
    inputs = pyramid()
    assert all(map(torch.equal, SpatialContextPyramid(8)(inputs), inputs))


def test_five_levels_of_256_channels_have_the_official_size():
    # FACTS of the official code: 5 x 132,098.
    assert sum(p.numel() for p in SpatialContextPyramid(256).parameters()) == 660490


@pytest.mark.parametrize('kind', ['FPN', 'PAFPN'])
def test_follows_a_pyramid_as_second_neck(kind):
    pytest.importorskip('mmdet')
    necks = [
        dict(type=kind, in_channels=[8, 16], out_channels=8, num_outs=3),
        dict(type='mmlska.SpatialContextPyramid', in_channels=8, num_outs=3),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = ROOT_MODELS.build(necks)
    model.init_weights()
    inputs = (torch.rand(1, 8, 16, 12), torch.rand(1, 16, 8, 6))
    first, both = model[0](inputs), model(inputs)
    assert len(both) == 3 and all(map(torch.equal, first, both))


@compiles
def test_exports_and_compiles():
    neck = scatter(SpatialContextPyramid(4, num_outs=2)).eval()
    inputs = pyramid(4, 2)
    expected = neck(inputs)
    exported = torch.export.export(neck, (inputs,)).module()
    compiled = torch.compile(neck, backend='eager', fullgraph=True)
    for outs in (exported(inputs), compiled(inputs)):
        assert all(map(torch.allclose, outs, expected))


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (pyramid(8, 4), r'5 maps .* but gets 4 with \[8, 8, 8, 8\].*num_outs=4'),
        (pyramid(16, 5), r'\[8, 8, 8, 8, 8\] channels, but gets 5 with \[16, .*in_channels=\[16'),
        ((), 'gets 0'),
    ],
)
def test_other_maps_than_it_is_built_for_are_refused(inputs, message):
    with pytest.raises(ValueError, match=f'SpatialContextPyramid is built for .*{message}'):
        SpatialContextPyramid(8)(inputs)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(in_channels=[8, 8]), r'in_channels=\[8, 8\] is for 2 levels, but num_outs=5'),
        (dict(in_channels=0), 'in_channels must be a positive integer, but got 0'),
        (dict(in_channels=[8, 8, 8, 8, 0.5]), 'in_channels must be a positive integer'),
        (dict(in_channels='8'), "in_channels must be a positive integer, but got '8'"),
        (dict(in_channels=8, num_outs=0), 'num_outs must be a positive integer, but got 0'),
        (dict(in_channels=8, reduction=0), 'reduction must be a positive integer, but got 0'),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialContextPyramid(**options)


@pytest.mark.parametrize('attention', ['ECA', dict(kernel_size=3)])
def test_an_attention_without_a_type_is_refused(attention):
    with pytest.raises(TypeError, match='a layer is configured by a dict with a'):
        PyramidAttention(attention, in_channels=8)


def official_names(neck, container):
    """Weights of a neck as CATNet's wrapped convolutions name them."""
    names = {}
    for key, value in neck.state_dict().items():
        _, level, conv, kind = key.split('.')
        names[f'{container}{level}.{conv}.conv.{kind}'] = value
    return names


@pytest.mark.parametrize(
    'container', ['levels.', 'blocks.', 'module.blocks.', 'neck.1.blocks.', '']
)
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
def test_takes_the_official_weights(container, wrapper):
    source = scatter(SpatialContextPyramid(8, num_outs=12))
    weights = official_names(source, container)
    target = SpatialContextPyramid(8, num_outs=12)
    target.load_state_dict(weights if wrapper is None else {wrapper: weights, 'meta': {}})
    loaded = target.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())


def test_takes_the_official_weights_inside_a_detector(tmp_path):
    neck = scatter(SpatialContextPyramid(8, num_outs=5))
    detector = nn.Module()
    detector.neck = nn.Sequential(nn.Conv2d(8, 8, 1), SpatialContextPyramid(8, num_outs=5))
    first = {f'neck.0.{key}': value for key, value in detector.neck[0].state_dict().items()}
    file = tmp_path / 'detector.pth'
    torch.save({'state_dict': {**first, **official_names(neck, 'neck.1.blocks.')}}, file)
    load_checkpoint(detector, str(file), strict=True)
    loaded = detector.neck[1].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in neck.state_dict().items())


def test_weights_of_another_number_of_levels_or_of_another_width_are_refused():
    weights = official_names(SpatialContextPyramid(8, num_outs=4), 'blocks.')
    with pytest.raises(RuntimeError, match=r'Missing key.*levels\.4\.a\.weight'):
        SpatialContextPyramid(8).load_state_dict(weights)
    with pytest.raises(RuntimeError, match=r'size mismatch for levels\.0\.a\.weight'):
        SpatialContextPyramid(16, num_outs=4).load_state_dict(weights)


def test_own_weights_make_a_round_trip():
    source, target = scatter(SpatialContextPyramid(8)), SpatialContextPyramid(8)
    target.load_state_dict(source.state_dict())
    inputs = pyramid()
    assert all(map(torch.equal, source(inputs), target(inputs)))
