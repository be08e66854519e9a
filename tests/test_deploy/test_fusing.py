import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from mmlska.deploy import fuse
from mmlska.models import VAN

NANO = dict(embed_dims=[8, 12, 16, 20], depths=[1, 2, 1, 1], ffn_ratios=[2, 2, 2, 2])
KINDS = ['LKA', 'LSKA', 'LKATrivial', 'LSKATrivial']
POSITIONS = ['after_attention', 'after_ffn', 'after_stage']


def trained(model, seed=0):
    """Every parameter and statistic far from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            spread = 0.5 + torch.rand(tensor.shape, generator=generator)
            sign = (
                1
                if 'running_var' in name
                else torch.randn(tensor.shape, generator=generator).sign()
            )
            tensor.copy_(spread * sign * (1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5))
    return model.eval()


def van(**options):
    return trained(VAN(**{'arch': NANO, 'attention': dict(type='LSKA', kernel_size=11), **options}))


def relative_error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('dtype', 'bound'), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_folded_backbone_has_the_same_outputs(kind, dtype, bound):
    model = van(attention=dict(type=kind, kernel_size=11)).to(dtype)
    folded = fuse(model)
    x = torch.randn(2, 3, 67, 93, dtype=dtype)
    for out, expected in zip(folded(x), model(x), strict=True):
        assert relative_error(out, expected) < bound
    assert not batch_norms(folded)


@pytest.mark.parametrize('position', POSITIONS)
@pytest.mark.parametrize('kind', ['LKA', 'LSKATrivial'])
def test_plugins_stay_where_they_act(position, kind):
    plugins = [dict(cfg=dict(type=kind, kernel_size=7), position=position)]
    model = van(plugins=plugins).double()
    folded = fuse(model)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for out, expected in zip(folded(x), model(x), strict=True):
        assert relative_error(out, expected) < 1e-12
    assert not batch_norms(folded)


def test_without_layer_scales_and_with_drop_path():
    model = van(layer_scale_init_value=0.0, drop_path_rate=0.3, drop_rate=0.1).double()
    x = torch.randn(1, 3, 40, 33, dtype=torch.float64)
    for out, expected in zip(fuse(model)(x), model(x), strict=True):
        assert relative_error(out, expected) < 1e-12


def test_a_norm_without_affine_parameters_is_folded():
    model = van(norm_cfg=dict(type='BN', affine=False)).double()
    folded = fuse(model)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert relative_error(folded(x)[3], model(x)[3]) < 1e-12
    assert not batch_norms(folded)


@pytest.mark.parametrize(
    'norm_cfg', [dict(type='GN', num_groups=2), dict(type='BN', track_running_stats=False)]
)
def test_what_cannot_be_folded_is_left_alone(norm_cfg):
    model = van(norm_cfg=norm_cfg).double()
    folded = fuse(model)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative_error(folded(x)[3], model(x)[3]) < 1e-12
    assert type(folded.blocks1[0]) is type(model.blocks1[0])


def test_the_model_is_left_as_it_was():
    model = van()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fuse(model)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_folded_model_cannot_be_trained():
    folded = fuse(van())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def count_operations(model, x):
    with torch.profiler.profile() as profile, torch.no_grad():
        model(x)
    return sum(event.count for event in profile.key_averages() if event.key.startswith('aten::'))


def test_a_folded_model_runs_fewer_operations_and_holds_fewer_weights():
    model = van()
    folded = fuse(model)
    x = torch.randn(1, 3, 32, 32)
    assert count_operations(folded, x) < 0.8 * count_operations(model, x)
    sizes = [sum(value.numel() for value in m.state_dict().values()) for m in (folded, model)]
    assert sizes[0] < sizes[1]


def test_folding_twice_or_in_training_mode_is_refused():
    model = van()
    with pytest.raises(ValueError, match='folded already'):
        fuse(fuse(model))
    with pytest.raises(ValueError, match=r'call model\.eval\(\) first'):
        fuse(model.train())


def test_a_folded_model_exports():
    folded = fuse(van())
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(folded, (x,)).module()
    assert torch.allclose(exported(x)[3], folded(x)[3], atol=1e-5)


@pytest.mark.parametrize('order', [('conv', 'norm', 'act'), ('norm', 'conv', 'act')])
def test_modules_of_mmcv_are_folded_where_the_norm_follows_the_convolution(order):
    module = trained(
        nn.Sequential(ConvModule(4, 6, 3, padding=1, norm_cfg=dict(type='BN'), order=order))
    )
    folded = fuse(module.double())
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    assert relative_error(folded(x), module(x)) < 1e-12
    assert bool(batch_norms(folded)) == (order[0] == 'norm')


def test_a_detector_gives_the_same_maps_and_scores():
    pytest.importorskip('mmdet')
    cfg = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    cfg.backbone = dict(type='mmlska.VAN', arch=NANO)
    cfg.neck.update(in_channels=NANO['embed_dims'], norm_cfg=dict(type='BN'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = trained(MODELS.build(cfg))
    folded = fuse(model)
    x = torch.randn(1, 3, 96, 128)
    for outs, expected in zip(folded(x), model(x), strict=True):
        for out, reference in zip(outs, expected, strict=True):
            assert relative_error(out, reference) < 1e-5
    assert not batch_norms(folded)


def test_a_segmentor_gives_the_same_logits():
    pytest.importorskip('mmseg')
    cfg = dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(type='mmlska.VAN', arch=NANO),
        neck=dict(type='mmseg.FPN', in_channels=NANO['embed_dims'], out_channels=16, num_outs=4),
        decode_head=dict(
            type='mmseg.FPNHead',
            in_channels=[16] * 4,
            in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32],
            channels=16,
            num_classes=5,
            norm_cfg=dict(type='BN'),
        ),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = trained(MODELS.build(cfg)).double()
    folded = fuse(model)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    assert relative_error(folded(x), model(x)) < 1e-12
    assert not batch_norms(folded)
