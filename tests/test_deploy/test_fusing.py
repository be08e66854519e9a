import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.distributed as dist
from cheap_layers import LAYERS
from fusing_laws import (
    NANO,
    batch_norms,
    count_operations,
    fuses_exactly,
    largest_error,
    relative_error,
    trained,
)
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.utils import parametrize, prune
from torch_versions import compiles

from mmlska.deploy import fuse, fusing, list_unfused
from mmlska.engine.config import load_config
from mmlska.models import VAN, ContainerLight, GhostNetV2
from mmlska.models.backbones.van import VANBlock

KINDS = {name: options for name, options in LAYERS.items() if name != 'IdentityStart'}
# With norms inside, which a sequence has to hand on to be fused.
KINDS['AttentionSequence'] = dict(
    layers=[dict(type='LSKA', kernel_size=7), dict(type='DFCAttention')]
)
POSITIONS = ['after_attention', 'after_ffn', 'after_stage']
MIXING = dict(embed_dims=[8, 12, 16, 16], depths=[1, 2, 1, 2], ffn_ratios=[2, 2, 2, 2])


def van(**options):
    return VAN(**{'arch': NANO, 'attention': dict(type='LSKA', kernel_size=11), **options})


def ghost(**options):
    return GhostNetV2(**{'width': 0.4, **options})


def container(num_heads=4, **options):
    return ContainerLight(dict(MIXING, num_heads=num_heads), **options)


def small_container(**options):
    return container([2, 0, 4, 2], **options)


BACKBONES = {'van': van, 'ghostnetv2': ghost, 'container': container, 'mixing': small_container}
every_backbone = pytest.mark.parametrize('build', BACKBONES.values(), ids=BACKBONES)
# Settings of training, or of what leaves the backbone, that all backbones have.
SETTINGS = [
    dict(with_cp=True),
    dict(frozen_stages=1, norm_eval=True),
    dict(out_indices=(0, 2)),
    dict(norm_cfg=dict(type='BN', affine=False)),
    dict(norm_cfg=dict(type='BN', eps=1e-3), in_channels=4),
    dict(norm_cfg=dict(type='SyncBN')),
]


@pytest.mark.filterwarnings('ignore:an input of')
@every_backbone
@pytest.mark.parametrize(
    ('dtype', 'size'),
    [(torch.float64, (67, 93)), (torch.float64, (32, 1)), (torch.float32, (64, 40))],
)
def test_a_fused_backbone_has_the_same_outputs(build, dtype, size):
    fused = fuses_exactly(trained(build()), 2, 3, *size, dtype=dtype)
    assert not batch_norms(fused)


@pytest.mark.filterwarnings('ignore:an input of')
@every_backbone
@pytest.mark.parametrize('options', SETTINGS, ids=str)
def test_every_setting_is_fused(build, options):
    model = trained(build(**options))
    fused = fuses_exactly(model, 1, options.get('in_channels', 3), 45, 70)
    assert not batch_norms(fused)
    assert not any(getattr(module, 'with_cp', False) for module in fused.modules())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('place', ['attention', *POSITIONS])
def test_every_layer_is_fused_in_every_place_of_van(kind, place):
    layer = dict(type=kind, **KINDS[kind])
    options = dict(attention=layer)
    if place != 'attention':
        options = dict(plugins=[dict(cfg=layer, position=place)])
    dims = dict(embed_dims=[4, 8], depths=[1, 2], ffn_ratios=[2, 2])
    fused = fuses_exactly(trained(van(arch=dims, out_indices=(0, 1), **options)), 2, 3, 35, 50)
    assert not batch_norms(fused)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_every_layer_is_fused_alone(kind, dtype):
    layer = trained(MODELS.build(dict(type=f'mmlska.{kind}', in_channels=8, **KINDS[kind])))
    assert not batch_norms(fuses_exactly(layer, 2, 8, 13, 9, dtype=dtype))


@pytest.mark.parametrize(
    ('build', 'options'),
    [
        (ghost, dict(with_last_conv=True)),
        (ghost, dict(output_stride=8)),
        (van, dict(stage_norm_cfg=dict(type='BN'))),
        (van, dict(layer_scale_init_value=0.0)),
        (van, dict(drop_path_rate=0.3, drop_rate=0.1)),
        (container, dict(drop_path_rate=0.3)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__name__,
)
def test_what_one_backbone_has_of_its_own_is_fused(build, options):
    fused = fuses_exactly(trained(build(**options)), 2, 3, 64, 40)
    assert not batch_norms(fused)
    assert not any('DropPath' in type(module).__name__ for module in fused.modules())


def test_a_block_that_stands_in_two_places_is_fused_once():
    block = van().blocks1[0]
    model = trained(nn.Sequential(block, nn.Sequential(block, nn.ReLU())))
    fused = fuses_exactly(model, 1, 8, 9, 11)
    assert fused[0] is fused[1][0]


def test_pure_affinities_are_fused():
    for name in ('alpha', 'beta'):
        layer = trained(MODELS.build(dict(type='mmlska.MixedAffinity', in_channels=8)))
        nn.init.zeros_(getattr(layer, name))
        fuses_exactly(layer, 1, 8, 7, 5)


# Of each backbone and layer, at most this share of the operations is left.
SHARES = [
    (van, 0.9),
    (ghost, 0.66),
    (container, 0.75),
    (small_container, 0.75),
]


@pytest.mark.filterwarnings('ignore:an input of')
@pytest.mark.parametrize(('build', 'share'), SHARES)
def test_a_fused_model_runs_fewer_operations_and_holds_fewer_weights(build, share):
    model = trained(build())
    fused = fuse(model)
    counts = [count_operations(m, 1, 3, 64, 64) for m in (fused, model)]
    assert counts[0] <= share * counts[1]
    sizes = [sum(value.numel() for value in m.state_dict().values()) for m in (fused, model)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize('kind', ['ContextAggregation', 'DFCAttention', 'MixedAffinity'])
def test_a_fused_layer_runs_fewer_operations(kind):
    layer = trained(MODELS.build(dict(type=f'mmlska.{kind}', in_channels=8, **KINDS[kind])))
    assert count_operations(fuse(layer), 1, 8, 8, 8) < count_operations(layer, 1, 8, 8, 8)


@pytest.mark.parametrize(
    ('norm_cfg', 'reason'),
    [
        (dict(type='GN', num_groups=2), 'GroupNorm normalises by statistics of each input'),
        (dict(type='BN', track_running_stats=False), 'BatchNorm2d without running statistics'),
    ],
)
@pytest.mark.parametrize('build', [van, ghost, container])
def test_what_cannot_be_fused_is_left_alone_and_listed(norm_cfg, reason, build):
    model = trained(build(norm_cfg=norm_cfg))
    fused = fuses_exactly(model, 2, 3, 64, 64)
    kinds = (nn.GroupNorm, nn.BatchNorm2d)
    norms = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    listed = list_unfused(fused)
    assert [name for name in listed if listed[name].startswith(reason)] == norms
    assert all(name in dict(fused.named_modules()) for name in listed)


def test_layer_scales_before_a_plugin_are_listed_and_logged(monkeypatch):
    lines = []
    monkeypatch.setattr(fusing, 'print_log', lambda line, *_: lines.append(line))
    plugin = dict(cfg=dict(type='ECA'), position='after_ffn', stages=(True, False, False, False))
    fused = fuses_exactly(trained(van(plugins=[plugin])), 1, 3, 32, 32)
    listed = list_unfused(fused)
    reason = 'LayerNorm2d normalises by statistics of each input'
    expected = {f'norm{i}': reason for i in range(1, 5)}
    expected['blocks1.0.layer_scale_2'] = 'a plugin stands between it and the branch'
    assert listed == expected
    assert lines == [
        'not fused: 4, first norm1: LayerNorm2d normalises by statistics of each input',
        'not fused: 1, first blocks1.0.layer_scale_2: a plugin stands between it and the branch',
    ]
    assert not list_unfused(fuse(trained(ghost())))


def test_the_model_is_left_as_it_was():
    for build in BACKBONES.values():
        model = trained(build(with_cp=True))
        before = copy.deepcopy(model.state_dict())
        text = repr(model)
        fuse(model)
        assert list(before) == list(model.state_dict()) and text == repr(model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
        model.train()


def test_nothing_of_a_fused_model_is_trained():
    for build in BACKBONES.values():
        fused = fuse(trained(build()))
        assert not any(parameter.requires_grad for parameter in fused.parameters())
        assert not any(module.training for module in fused.modules())
        assert not any('running' in key or 'tracked' in key for key in fused.state_dict())


def test_a_part_in_training_mode_is_refused():
    model = trained(van())
    with pytest.raises(ValueError, match=r'the model is in training mode.*call model\.eval\(\)'):
        fuse(model.train())
    model.eval()
    model.blocks2[1].norm1.train()
    with pytest.raises(ValueError, match=r'blocks2\.1\.norm1 is in training mode'):
        fuse(model)
    frozen = trained(van(norm_eval=True, frozen_stages=0)).train()
    with pytest.raises(ValueError, match=r'call model\.eval\(\) first'):
        fuse(frozen)


@pytest.mark.parametrize('build', BACKBONES.values())
def test_fusing_twice_is_refused(build):
    fused = fuse(trained(build()))
    with pytest.raises(ValueError, match='fused already'):
        fuse(fused)
    with pytest.raises(ValueError, match='fused already'):
        fuse(nn.Sequential(fused).eval())


def test_a_fused_model_copies_pickles_and_loads_its_own_weights():
    for build in BACKBONES.values():
        fused = fuse(trained(build()))
        file = io.BytesIO()
        torch.save(fused.state_dict(), file)
        file.seek(0)
        again = fuse(build().eval())
        again.load_state_dict(torch.load(file, weights_only=True))
        x = torch.randn(1, 3, 40, 40)
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), again):
            assert largest_error(other(x), fused(x)) == 0
            assert type(other) is type(fused)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('build', BACKBONES.values())
def test_fused_and_other_weights_are_not_taken_for_each_other(build, strict):
    model = trained(build())
    fused = fuse(model)
    with pytest.raises(ValueError, match='are of a model that is not fused'):
        fused.load_state_dict(model.state_dict(), strict=strict)
    with pytest.raises((ValueError, RuntimeError), match='running_mean'):
        model.load_state_dict(fused.state_dict(), strict=strict)


@pytest.mark.parametrize(
    'build', [pytest.param(van, marks=compiles), ghost, container], ids=lambda build: build.__name__
)
def test_a_fused_model_exports_and_traces(build):
    fused = fuse(trained(build(out_indices=1)))
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(fused, (x,)).module()
    traced = torch.jit.trace(fused, x)
    other = torch.randn(1, 3, 64, 64)
    for form in (exported, traced):
        assert largest_error(form(other), fused(other)) < 1e-5


@pytest.mark.parametrize('order', [*itertools.permutations(('conv', 'norm', 'act'))])
@pytest.mark.parametrize('kernel_size', [1, 3])
def test_modules_of_mmcv_are_fused_where_the_order_allows_it(order, kernel_size):
    module = ConvModule(
        4, 6, kernel_size, padding=kernel_size // 2, norm_cfg=dict(type='BN'), order=order
    )
    fused = fuses_exactly(trained(module), 1, 4, 9, 9)
    distance = order.index('norm') - order.index('conv')
    is_fusible = distance == 1 or (distance == -1 and kernel_size == 1)
    assert bool(batch_norms(fused)) == (not is_fusible)


@pytest.mark.parametrize(
    'options',
    [
        dict(padding_mode='reflect', order=('norm', 'conv', 'act')),
        dict(conv_cfg=dict(type='ConvAWS')),
        dict(with_spectral_norm=True),
        dict(efficient_conv_bn_eval=True),
        dict(padding_mode='reflect'),
    ],
    ids=str,
)
def test_unusual_modules_of_mmcv_give_the_same(options):
    module = ConvModule(4, 6, 1, padding=1, norm_cfg=dict(type='BN'), **options)
    fused = fuses_exactly(trained(module), 1, 4, 9, 9)
    fusible = options in (dict(efficient_conv_bn_eval=True), dict(padding_mode='reflect'))
    assert bool(batch_norms(fused)) == (not fusible)


def test_the_synchronised_norms_of_mmcv_are_fused(tmp_path):
    pytest.importorskip('mmcv._ext')
    from mmcv.ops import SyncBatchNorm

    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        norm = SyncBatchNorm(4)
        model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
        fused = fuse(model)
    finally:
        dist.destroy_process_group()
    plain = nn.BatchNorm2d(4).eval()
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(1, 3, 8, 8)
    assert relative_error(fused(x), plain(model[0](x))) < 1e-6
    assert not batch_norms(fused) and model[1] is norm


def test_a_derived_class_that_computes_something_else_is_not_taken_for_its_base():
    class Doubled(VANBlock):
        def _forward(self, x):
            return super()._forward(self.norm1(x))

    class OtherSum(VANBlock):
        def _add(self, x, branch, scale):
            return super()._add(x, 2 * branch, scale)

    class Same(VANBlock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.note = 'built in another way'

    for kind in (Doubled, OtherSum, Same):
        model = trained(van())
        for stage in (model.blocks1, model.blocks2):
            stage[0].__class__ = kind
        fused = fuses_exactly(model, 1, 3, 33, 40)
        assert isinstance(fused.blocks1[0], kind) == (kind is not Same)


def test_watched_modules_are_left_alone():
    seen = []
    model = trained(van())
    model.blocks1[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    model.patch_embed2.projection.register_forward_hook(lambda *_: seen.append(2))
    fused = fuse(model)
    fused(torch.randn(1, 3, 32, 32))
    assert seen == [1, 2]
    assert batch_norms(fused) == ['blocks1.0.norm1', 'blocks1.0.norm2', 'patch_embed2.norm']


class Adapter(nn.Module):
    """A convolution with a correction of low rank beside it, which knows none of its attributes."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        channels = base.in_channels
        self.down = nn.Conv2d(channels, 1, 1, base.stride, bias=False)
        self.up = nn.Conv2d(1, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Shift(nn.Module):
    def forward(self, weight):
        return weight + 0.1


def adapt(parent, name):
    conv = getattr(parent, name)
    setattr(parent, name, Adapter(conv) if conv.kernel_size == (1, 1) else conv)


def parametrize_weight(parent, name):
    parametrize.register_parametrization(getattr(parent, name), 'weight', Shift())


def prune_weight(parent, name):
    prune.l1_unstructured(getattr(parent, name), 'weight', 0.5)


def changed(model, change):
    """The model with every convolution changed, and without gradients, as copies ask for."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                change(parent, name)
    return model.requires_grad_(False).eval()


every_change = pytest.mark.parametrize('change', [adapt, parametrize_weight, prune_weight])


@every_change
@every_backbone
def test_changed_convolutions_of_a_backbone_keep_what_they_compute(build, change):
    fuses_exactly(changed(trained(build()), change), 1, 3, 33, 40)


@every_change
@pytest.mark.parametrize('kind', KINDS)
def test_changed_convolutions_of_a_layer_keep_what_they_compute(kind, change):
    layer = MODELS.build(dict(type=f'mmlska.{kind}', in_channels=8, **KINDS[kind]))
    fuses_exactly(changed(trained(layer), change), 2, 8, 9, 7)


def test_a_backbone_whose_train_returns_nothing_is_fused():
    class ReturnsNothing(nn.Sequential):
        """Like the ResNet of mmdet and of mmseg."""

        def train(self, mode=True):
            super().train(mode)

    model = ReturnsNothing(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    trained(model)
    assert not batch_norms(fuses_exactly(model, 2, 3, 9, 8))


FAMILIES = [
    'fpn_van-b0_8xb4-40k_ade20k-512x512',
    'mask-rcnn_van-lska-tiny_fpn-scp_1x_coco',
    'retinanet_r50-context_fpn_1x_coco',
    'fpn_r50-eca_4xb4-80k_ade20k-512x512',
    'deeplabv3_ghostnetv2-100-d16_4xb4-80k_ade20k-512x512',
    'fpn_container-light_4xb4-80k_ade20k-512x512',
    'rtmdet_tiny-lska_8xb32-300e_coco',
]


def run_all_parts(model, x):
    """The maps and scores of a detector or segmentor, in both of the stages of one that has two."""
    if not hasattr(model, 'roi_head'):
        return model(x)
    features = model.extract_feat(x)
    rois = torch.tensor([[0, 3, 4, 40, 50], [0, 20, 9, 60, 33]], dtype=x.dtype)
    second = [
        *model.roi_head._bbox_forward(features, rois).values(),
        *model.roi_head._mask_forward(features, rois).values(),
    ]
    return features, model.rpn_head(features), second


@pytest.mark.parametrize('name', FAMILIES)
def test_whole_detectors_and_segmentors_of_the_configs_are_fused(name):
    scope = 'mmseg' if 'ade20k' in name else 'mmdet'
    pytest.importorskip(scope)
    cfg = load_config(name)
    with DefaultScope.overwrite_default_scope(scope):
        model = trained(MODELS.build(cfg.model)).double()
    fused = fuse(model)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert largest_error(run_all_parts(fused, x), run_all_parts(model, x)) < 1e-12
    assert not batch_norms(fused)
