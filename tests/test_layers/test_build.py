"""Norms, activations and layers from configs: equal to mmcv's, and clear where they are wrong."""

import pytest
import torch
from torch import nn

from mmlska.layers import LSKA, LayerNorm2d
from mmlska.layers.build import ACTIVATIONS, NORMS, build_activation, build_layer, build_norm

MAPS = [name for name in NORMS if not name.endswith(('1d', '3d'))]
OPTIONS = {'GN': dict(num_groups=2)}


def settings(module):
    """What a module is made of, but for its place."""
    hidden = ('training', '_parameters', '_buffers', '_modules')
    return {
        key: value
        for key, value in vars(module).items()
        if key not in hidden and not (key.startswith('_') and 'hook' in key)
    }


@pytest.mark.parametrize('more', [{}, dict(eps=1e-3), dict(requires_grad=False)])
@pytest.mark.parametrize('name', NORMS)
def test_norms_are_those_of_mmcv(name, more):
    mmcv = pytest.importorskip('mmcv.cnn')
    cfg = dict(type=name, **OPTIONS.get(name, {}), **more)
    ours, theirs = build_norm(cfg, 4), mmcv.build_norm_layer(cfg, 4)[1]
    # A LayerNorm acts on another axis here, mmengine's SyncBN is PyTorch's under a name of its own;
    # both are the same otherwise.
    same = {'LN': LayerNorm2d, 'SyncBN': nn.SyncBatchNorm}.get(name, type(theirs))
    assert type(ours) is same
    assert isinstance(ours, type(theirs)) or isinstance(theirs, type(ours))
    assert settings(ours) == settings(theirs)
    expected = {key: (p.shape, p.requires_grad) for key, p in theirs.named_parameters()}
    assert {key: (p.shape, p.requires_grad) for key, p in ours.named_parameters()} == expected
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert cfg == dict(type=name, **OPTIONS.get(name, {}), **more)


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activations_are_those_of_mmcv(name):
    mmcv = pytest.importorskip('mmcv.cnn')
    cfg = dict(type=name)
    ours, theirs = build_activation(cfg), mmcv.build_activation_layer(cfg)
    assert type(ours) is type(theirs)
    assert settings(ours) == settings(theirs)


def test_every_norm_and_activation_of_pytorch_in_mmcv_is_known_here():
    pytest.importorskip('mmcv.cnn')
    from mmengine.registry import MODELS as ROOT

    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    theirs = {
        name
        for name, kind in ROOT.module_dict.items()
        if isinstance(kind, type) and (kind.__module__.startswith('torch.') or name == 'SyncBN')
    }
    built = {n for n in theirs if issubclass(ROOT.module_dict[n], norms)}
    assert built == set(NORMS)
    acts = {n for n in theirs if ROOT.module_dict[n].__module__ == 'torch.nn.modules.activation'}
    assert acts - {'HSwish', 'MultiheadAttention'} == set(ACTIVATIONS)


@pytest.mark.parametrize('name', MAPS)
def test_norms_take_maps(name):
    norm = build_norm(dict(type=name, **OPTIONS.get(name, {})), 4).eval()
    x = torch.randn(2, 4, 5, 3)
    assert norm(x).shape == x.shape


@pytest.mark.parametrize('kind', ['LN', nn.LayerNorm, LayerNorm2d])
def test_layer_norm_acts_over_the_channels(kind):
    norm = build_norm(dict(type=kind, eps=1e-6), 4).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    factor, shift = (p[:, None, None] for p in (norm.weight, norm.bias))
    assert torch.allclose(norm(x), (x - mean) / (var + 1e-6).sqrt() * factor + shift)


def test_a_norm_of_a_user_needs_no_epsilon():
    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(channels, 1, 1))

    norm = build_norm(dict(type=Scale, requires_grad=False), 4)
    assert norm.factor.shape == (4, 1, 1)
    assert not norm.factor.requires_grad


def test_classes_and_registered_names_are_types_too():
    assert type(build_norm(dict(type=nn.BatchNorm2d), 4)) is nn.BatchNorm2d
    assert type(build_activation(dict(type=nn.Mish))) is nn.Mish
    assert type(build_layer(dict(type=LSKA), 4)) is LSKA


def test_activations_of_the_registry_are_found():
    mmcv = pytest.importorskip('mmcv.cnn')
    assert type(build_activation(dict(type='Clip'))) is type(
        mmcv.build_activation_layer(dict(type='Clip'))
    )


def test_a_layer_that_is_registered_in_the_default_scope_only_is_found():
    mmdet = pytest.importorskip('mmdet.registry')
    from mmengine.registry import DefaultScope

    @mmdet.MODELS.register_module(name='mmlska_test_own', force=True)
    class Own(nn.Identity):
        def __init__(self, in_channels):
            super().__init__()

    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(build_layer(dict(type='mmlska_test_own'), 4)) is Own
    # Another test may have left a scope behind.
    with (
        DefaultScope.overwrite_default_scope('mmlska'),
        pytest.raises(KeyError, match='mmlska_test_own'),
    ):
        build_layer(dict(type='mmlska_test_own'), 4)


@pytest.mark.parametrize(
    ('build', 'name', 'nearest', 'known'),
    [
        (lambda name: build_norm(dict(type=name), 4), 'BNN', 'BN', 'SyncBN'),
        (lambda name: build_activation(dict(type=name)), 'GeLU', 'GELU', 'SiLU'),
        (lambda name: build_layer(dict(type=name), 4), 'LSKAA', 'LSKA', 'DFCAttention'),
    ],
)
def test_an_unknown_type_is_told_the_nearest_and_all(build, name, nearest, known):
    with pytest.raises(KeyError) as error:
        build(name)
    text = str(error.value)
    assert name in text
    assert f'the nearest is {nearest!r}' in text
    assert known in text


@pytest.mark.parametrize('cfg', [None, 'BN', {}, dict(eps=1e-5), ['BN']])
def test_what_is_no_config_is_refused(cfg):
    for build in (lambda: build_norm(cfg, 4), lambda: build_activation(cfg)):
        with pytest.raises(ValueError, match="is configured by a dict with a 'type'"):
            build()


def test_group_norm_needs_its_groups():
    with pytest.raises(ValueError, match='needs num_groups'):
        build_norm(dict(type='GN'), 4)


@pytest.mark.parametrize(
    ('name', 'option', 'words'),
    [
        ('ContextAggregation', dict(kernel_size=23), 'takes in_channels, reduction'),
        ('LSKATrivial', dict(dilation=3), 'takes no dilation=3'),
        ('LSKA', dict(kernelsize=23), "the nearest is 'kernel_size'"),
    ],
)
def test_an_option_that_may_come_from_another_type_is_refused_with_the_remedy(name, option, words):
    with pytest.raises(TypeError, match='_delete_=True') as error:
        build_layer(dict(type=name, **option), 8)
    assert words in str(error.value)
    assert f"dict(_delete_=True, type='{name}')" in str(error.value)


def test_options_of_a_layer_with_keyword_arguments_are_its_own_affair():
    class Open(nn.Identity):
        def __init__(self, in_channels, **options):
            super().__init__()
            self.options = options

    assert build_layer(dict(type=Open, anything=1), 4).options == dict(anything=1)


def test_the_remedy_of_the_message_works(tmp_path):
    config = pytest.importorskip('mmengine.config')
    (tmp_path / 'base.py').write_text("attention = dict(type='LSKA', kernel_size=35)")
    (tmp_path / 'own.py').write_text(
        "_base_ = 'base.py'\nattention = dict(_delete_=True, type='ContextAggregation')"
    )
    attention = config.Config.fromfile(tmp_path / 'own.py').attention
    assert type(build_layer(attention, 8)).__name__ == 'ContextAggregation'
