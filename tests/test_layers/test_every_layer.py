"""What every attention layer promises, whatever it computes, and every place that takes it."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from cheap_layers import LAYERS
from mmcv.cnn import build_plugin_layer
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn
from torch_versions import compiles, half_on_cpu, since

from mmlska.layers import ConvFFN, GhostBottleneck, GhostModule, LayerNorm2d, SqueezeExcite
from mmlska.registry import MODELS

SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (12, 8)]

every_layer = pytest.mark.parametrize('name', LAYERS)


def make(name, in_channels=8, scattered=True):
    """A layer, by default far from its initial weights, which may make it the identity."""
    layer = MODELS.get(name)(in_channels, **LAYERS[name])
    return scatter(layer) if scattered else layer


def scatter(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def test_the_table_holds_every_layer_that_bears_the_name_of_a_plugin():
    plugins = {name for name, kind in MODELS.module_dict.items() if hasattr(kind, '_abbr_')}
    assert plugins == set(LAYERS)


@every_layer
def test_is_a_plugin_of_mmcv(name):
    plugin_name, layer = build_plugin_layer(
        dict(type=f'mmlska.{name}', **LAYERS[name]), '_1', in_channels=8
    )
    assert plugin_name == f'{layer._abbr_}_1'
    assert type(layer) is MODELS.get(name)


def test_no_two_layers_share_a_plugin_name():
    names = [MODELS.get(name)._abbr_ for name in LAYERS]
    assert len(set(names)) == len(names)


@every_layer
def test_tells_its_channels(name):
    assert make(name).in_channels == 8


@every_layer
@pytest.mark.parametrize('size', SIZES)
def test_keeps_the_shape_of_maps_of_any_size(name, size):
    layer = make(name)
    x = torch.randn(1, 8, *size)
    kept = x.clone()
    out = layer(x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert torch.equal(x, kept)


@every_layer
def test_images_of_a_batch_do_not_see_each_other(name):
    layer = make(name).double().eval()
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    alone = torch.cat([layer(image[None]) for image in x])
    assert relative_error(layer(x), alone) < 1e-12


@every_layer
def test_gradients(name):
    layer = make(name, in_channels=8).double().eval()
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)


@every_layer
def test_state_dict_round_trip(name):
    source, target = make(name).eval(), make(name, scattered=False).eval()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 8, 9, 7)
    assert torch.equal(source(x), target(x))


@every_layer
def test_copies_and_pickles(name):
    layer = make(name).eval()
    x = torch.randn(1, 8, 9, 7)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert not torch.equal(other(x), layer(x))


@every_layer
def test_an_empty_batch_stays_one(name):
    layer = make(name).eval()
    x = torch.rand(0, 8, 6, 5, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape


@every_layer
def test_inference_mode_and_maps_of_any_strides(name):
    layer = make(name).eval()
    x = torch.randn(2, 8, 12, 10)
    expected = layer(x)
    with torch.inference_mode():
        assert torch.allclose(layer(x), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-5)
    strided = x.new_zeros(2, 8, 24, 30)[:, :, ::2, ::3]
    strided.copy_(x)
    assert torch.allclose(layer(strided), expected, atol=1e-5)
    expanded = x[:1].expand(3, -1, -1, -1)
    assert torch.allclose(layer(expanded), expected[:1].expand(3, -1, -1, -1), atol=1e-5)


@every_layer
@pytest.mark.parametrize('training', [False, True])
def test_torchscript(name, training):
    layer = make(name).train(training)
    x = torch.randn(2, 8, 9, 7)
    assert torch.allclose(torch.jit.script(layer)(x), layer(x), atol=1e-5)


@since('2.6', 'the symbols of its torch.fx have no number type')
@every_layer
@pytest.mark.parametrize('training', [False, True])
def test_torch_fx(name, training):
    layer = make(name).train(training)
    x = torch.randn(2, 8, 9, 7)
    assert torch.allclose(torch.fx.symbolic_trace(layer)(x), layer(x), atol=1e-5)


@every_layer
def test_a_derived_class_may_have_more_modules(name):
    """They are its own affair: forward uses what it names."""
    kind = MODELS.get(name)

    class Derived(kind):
        def __init__(self, in_channels, **options):
            super().__init__(in_channels, **options)
            self.norm = nn.BatchNorm2d(in_channels)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.norm(super().forward(x)))

    derived, plain = Derived(8, **LAYERS[name]).eval(), make(name).eval()
    own = {key: value for key, value in derived.state_dict().items() if key.startswith('norm.')}
    derived.load_state_dict({**plain.state_dict(), **own})
    derived.norm.running_mean.fill_(0.3)
    x = torch.randn(1, 8, 9, 7)
    assert torch.equal(derived(x), derived.act(derived.norm(plain(x))))
    if hasattr(derived, 'init_weights'):
        derived.init_weights()
        assert torch.equal(derived.norm.running_mean, torch.full((8,), 0.3))


@every_layer
@pytest.mark.parametrize(
    ('x', 'words'),
    [
        (torch.rand(1, 6, 5, 5), r'is built for maps \(N, 8, H, W\), but gets \(1, 6, 5, 5\)'),
        (torch.rand(8, 5, 5), r'gets \(8, 5, 5\); add the batch axis'),
        (torch.rand(1, 8, 5), r'is built for maps \(N, 8, H, W\)'),
        (torch.rand(1, 8, 5, 5).double(), r'has weights of torch.float32, but gets a map of'),
        (torch.ones(1, 8, 5, 5, dtype=torch.uint8), r'convert the map with x.to\(torch.float32\)'),
    ],
    ids=['channels', 'no batch axis', 'no columns', 'float64', 'integers'],
)
def test_what_is_no_map_of_the_layer_is_refused(name, x, words):
    layer = make(name)
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            layer(x)
    layer(torch.rand(1, 8, 5, 5))


@every_layer
def test_the_check_of_the_map_disturbs_no_tracer(name):
    layer = make(name).eval()
    x = torch.rand(1, 8, 9, 7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        traced = torch.jit.trace(layer, x)
    assert not [warning for warning in caught if 'input_check' in warning.filename]
    assert torch.allclose(traced(x), layer(x), atol=1e-5)


PARTS = {
    'ConvFFN': lambda: ConvFFN(8, 16),
    'GhostModule': lambda: GhostModule(8, 8, attention=True),
    'GhostBottleneck': lambda: GhostBottleneck(8, 16, 8, se_ratio=0.25),
    'SqueezeExcite': lambda: SqueezeExcite(8, 0.25),
    'LayerNorm2d': lambda: LayerNorm2d(8),
}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', PARTS)
def test_the_parts_of_blocks_trace_too(name, training):
    part = scatter(PARTS[name]()).train(training)
    x = torch.randn(2, 8, 9, 7)
    for traced in (torch.jit.script(part), torch.fx.symbolic_trace(part)):
        assert torch.allclose(traced(x), part(x), atol=1e-5)


@pytest.mark.parametrize('name', ['ConvFFN', 'GhostModule', 'GhostBottleneck'])
def test_the_parts_of_blocks_refuse_other_channels(name):
    with pytest.raises(ValueError, match=r'is built for maps \(N, 8, H, W\), but gets'):
        PARTS[name]()(torch.rand(1, 6, 9, 7))


@compiles
@every_layer
def test_exports_and_compiles(name):
    layer = make(name).eval()
    x = torch.randn(1, 8, 10, 12)
    exported = torch.export.export(layer, (x,)).module()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend='eager', fullgraph=True)
    assert torch.allclose(exported(x), layer(x), atol=1e-6)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)


@every_layer
def test_bf16_autocast_stays_near_float32(name):
    layer = make(name)
    x = torch.randn(2, 8, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    out.float().square().mean().backward()
    assert relative_error(out.float(), layer(x)) < 3e-2
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@every_layer
@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=half_on_cpu)])
def test_a_layer_in_half_precision_returns_it(name, dtype):
    layer = make(name).eval()
    x = torch.rand(1, 8, 7, 5)
    expected = layer(x)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert relative_error(out.float(), expected) < 5e-2


@every_layer
def test_builds_and_runs_without_memory(name):
    with torch.device('meta'):
        layer = make(name, scattered=False)
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert layer(torch.empty(1, 8, 800, 1344, device='meta')).shape == (1, 8, 800, 1344)


@every_layer
def test_channels_last_gives_the_same(name):
    layer = make(name).eval()
    x = torch.randn(2, 8, 9, 11)
    expected = layer(x)
    out = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(out, expected, atol=1e-5)


def resnet(scope, **plugin):
    """A small Bottleneck ResNet of another library."""
    pytest.importorskip(scope)
    return dict(
        type='ResNet',
        depth=50,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        stem_channels=8,
        base_channels=8,
        plugins=[dict(cfg=plugin, stages=(False, True), position='after_conv3')],
    )


def van(position, **plugin):
    return dict(
        type='mmlska.VAN',
        arch=dict(embed_dims=[8, 16], depths=[1, 2], ffn_ratios=[2, 2]),
        # No attention of its own, so that every layer found is an added one.
        attention=dict(type=nn.Identity),
        out_indices=(0, 1),
        plugins=[dict(cfg=plugin, stages=(False, True), position=position)],
    )


def neck(**plugin):
    return dict(type='mmlska.PyramidAttention', attention=plugin, in_channels=[8, 16], num_outs=2)


# Place: default scope, config of the model, whether the model takes an image, number of layers.
PLACES = {
    'mmdet ResNet': ('mmdet', lambda **layer: resnet('mmdet', **layer), True, 4),
    'mmseg ResNet': ('mmseg', lambda **layer: resnet('mmseg', **layer), True, 4),
    'VAN after_attention': ('mmdet', lambda **layer: van('after_attention', **layer), True, 2),
    'VAN after_ffn': ('mmseg', lambda **layer: van('after_ffn', **layer), True, 2),
    'VAN after_stage': ('mmdet', lambda **layer: van('after_stage', **layer), True, 1),
    'PyramidAttention': ('mmseg', neck, False, 2),
}


def put(name, place, **settings):
    """Build a model with a layer at a place by config alone, in the default scope of its task."""
    scope, config, takes_image, number = PLACES[place]
    pytest.importorskip(scope)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = ROOT_MODELS.build(config(type=f'mmlska.{name}', **LAYERS[name]) | settings)
    image = torch.randn(2, 3, 64, 48)
    pyramid = (torch.randn(2, 8, 16, 12), torch.randn(2, 16, 8, 6))
    added = [module for module in model.modules() if type(module) is MODELS.get(name)]
    assert len(added) == number
    return model, image if takes_image else pyramid, added


@every_layer
@pytest.mark.parametrize('place', PLACES)
def test_every_layer_trains_in_every_place(name, place):
    model, inputs, added = put(name, place)
    for layer in added:
        scatter(layer)
    model.train()
    outs = model(inputs)
    assert [out.shape[0] for out in outs] == [2, 2]
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for layer in added:
        for key, parameter in layer.named_parameters():
            assert torch.isfinite(parameter.grad).all()
            # A constant added to all keys of a softmax moves nothing, by its nature.
            assert parameter.grad.any() or (name, key) == ('ContextAggregation', 'k.bias')


@pytest.mark.parametrize('place', ['mmdet ResNet', 'mmseg ResNet', 'PyramidAttention'])
@pytest.mark.parametrize('name', [n for n in LAYERS if hasattr(MODELS.get(n), 'init_weights')])
def test_the_initialisation_of_a_model_leaves_the_layer_its_own(name, place):
    value = 7.0
    init_cfg = dict(type='Constant', layer='Conv2d', val=value)
    model, _, added = put(name, place, init_cfg=init_cfg)
    model.init_weights()
    for layer in added:
        assert not any((parameter == value).any() for parameter in layer.parameters())
