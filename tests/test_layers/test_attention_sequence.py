import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmlska.engine import check_plugins
from mmlska.models import ECA, LSKA, AttentionSequence

BOTH = [dict(type='LSKA', kernel_size=7), dict(type='ECA')]


def test_the_layers_act_in_their_order():
    torch.manual_seed(0)
    sequence = AttentionSequence(8, BOTH)
    assert [type(layer) for layer in sequence] == [LSKA, ECA]
    x = torch.randn(1, 8, 6, 5)
    assert torch.equal(sequence(x), sequence.eca(sequence.lska(x)))
    assert not torch.allclose(sequence(x), sequence.lska(sequence.eca(x)))


def test_two_of_a_kind_need_a_postfix():
    with pytest.raises(ValueError, match=r"both named 'eca'.*'postfix'"):
        AttentionSequence(8, [dict(type='ECA'), dict(type='ECA')])
    sequence = AttentionSequence(8, [dict(type='ECA'), dict(type='ECA', postfix='_2')])
    assert [name for name, _ in sequence.named_children()] == ['eca', 'eca_2']


@pytest.mark.parametrize('layers', [[], None])
def test_no_layers_are_refused(layers):
    with pytest.raises(ValueError, match='at least one'):
        AttentionSequence(8, layers)


def block(scope, plugins):
    """A bottleneck of another library's ResNet that outputs its branch alone."""
    pytest.importorskip(scope)
    settings = dict(
        type='ResNet',
        depth=50,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        stem_channels=8,
        base_channels=8,
        plugins=[dict(cfg=plugin, position='after_conv3') for plugin in plugins],
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings).layer1[1]


def layers_that_learn(block):
    """Attention layers of a block that a loss on its output reaches."""
    block(torch.randn(2, 32, 6, 5)).square().sum().backward()
    layers = [layer for layer in block.modules() if isinstance(layer, (LSKA, ECA))]
    reached = [all(weight.grad is not None for weight in layer.parameters()) for layer in layers]
    return [type(layer) for layer, flag in zip(layers, reached, strict=True) if flag]


def prefixed(layers):
    return [{**layer, 'type': f'mmlska.{layer["type"]}'} for layer in layers]


def test_mmseg_loses_a_plugin_and_the_check_finds_it():
    lossy = block('mmseg', prefixed(BOTH))
    assert layers_that_learn(lossy) == [ECA]
    message = (
        r'plugin lska of layer1.1 never runs: mmseg.Bottleneck .*'
        r"'after_conv3', which is eca.*mmlska.AttentionSequence"
    )
    model = torch.nn.Module()
    model.layer1 = torch.nn.ModuleList([torch.nn.Identity(), lossy])
    with pytest.raises(ValueError, match=message):
        check_plugins(model)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_in_a_sequence_no_plugin_is_lost(scope):
    whole = block(scope, [dict(type='mmlska.AttentionSequence', layers=BOTH)])
    assert layers_that_learn(whole) == [LSKA, ECA]
    check_plugins(whole)


def test_mmdet_runs_them_all_and_passes_the_check():
    whole = block('mmdet', prefixed(BOTH))
    assert layers_that_learn(whole) == [LSKA, ECA]
    check_plugins(whole)


def test_plugins_at_different_positions_pass_the_check():
    pytest.importorskip('mmseg')
    from mmseg.models.backbones.resnet import Bottleneck

    plugins = [
        dict(cfg=dict(type='mmlska.ECA'), position='after_conv2'),
        dict(cfg=dict(type='mmlska.ECA', postfix='_3'), position='after_conv3'),
    ]
    separate = Bottleneck(32, 8, plugins=plugins)
    assert layers_that_learn(separate) == [ECA, ECA]
    check_plugins(separate)
