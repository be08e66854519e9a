import copy

import pytest
import torch
from mmengine.runner import load_checkpoint
from routes import ROUTES, Detector, fill, log_of, needs_safe_globals, same
from safetensors.torch import save_file
from torch import nn

from mmlska.checkpoint import CheckpointError, to_naming
from mmlska.checkpoint.reading import offer_backbone
from mmlska.models import VAN

ARCH = dict(embed_dims=[4, 6, 8, 10], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2])
# As much of a model as has each of the names.
SMALL = dict(arch=dict(embed_dims=[4, 6], depths=[1, 2], ffn_ratios=[2, 2]), out_indices=(0, 1))
NAMINGS = ['official', 'official-detection', 'mmlska']


def van(kind='LSKA', kernel_size=11, arch=ARCH, **options):
    return VAN(arch, dict(type=kind, kernel_size=kernel_size), **options).eval()


def trained(**options):
    return fill(van(**options))


# Every naming, wrapping, prefix and route


@pytest.fixture(scope='module')
def small():
    return trained(**SMALL)


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize('naming', NAMINGS)
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model', 'state_dict_ema'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('head', [False, True])
def test_loads_whole(route, naming, wrapper, prefix, head, small, tmp_path):
    target = van(**SMALL)
    weights = {f'{prefix}{k}': v for k, v in to_naming(small.state_dict(), naming).items()}
    if head:
        outer = prefix.replace('backbone.', '')
        weights |= {f'{outer}head.weight': torch.ones(9), f'{outer}head.bias': torch.ones(3)}
    route(target, weights if wrapper is None else {wrapper: weights, 'epoch': 1}, tmp_path)
    assert same(small, target)


def test_a_mixture_of_namings_loads_whole():
    # mmseg's conversions of VAN: official blocks and patches, but mmpretrain's FFN.
    source, target = trained(), van()
    weights = to_naming(source.state_dict(), 'official')
    weights = {k.replace('mlp.dwconv.dwconv', 'mlp.dwconv'): v for k, v in weights.items()}
    target.load_state_dict(weights)
    assert same(source, target)


@pytest.mark.parametrize('kind', ['LKA', 'LSKA', 'LKATrivial', 'LSKATrivial'])
@pytest.mark.parametrize('naming', [*NAMINGS, 'mmpretrain'])
def test_every_kind_of_attention_loads_whole(kind, naming):
    source, target = trained(kind=kind), van(kind=kind)
    target.load_state_dict(to_naming(source.state_dict(), naming))
    assert same(source, target)


def test_mmpretrains_head_is_left_out():
    source, target = trained(), van()
    weights = to_naming(source.state_dict(), 'mmpretrain')
    weights['head.fc.weight'] = torch.ones(3)
    lines = log_of(lambda: target.load_state_dict(weights))
    assert same(source, target)
    assert len([line for line in lines if 'left out' in line]) == 1


def test_safetensors(tmp_path):
    source, alone, inside = trained(), van(), van()
    save_file(to_naming(source.state_dict(), 'official'), tmp_path / 'van.safetensors')
    load_checkpoint(alone, str(tmp_path / 'van.safetensors'))
    load_checkpoint(Detector(inside), str(tmp_path / 'van.safetensors'))
    assert same(source, alone)
    assert same(source, inside)


@pytest.mark.parametrize('naming', NAMINGS)
def test_a_whole_detector_of_the_official_code(naming, tmp_path):
    source, target, alone = Detector(trained()), Detector(van()), van()
    weights = {
        f'backbone.{k}': v for k, v in to_naming(source.backbone.state_dict(), naming).items()
    }
    weights |= {f'neck.{key}': value for key, value in source.neck.state_dict().items()}
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'detector.pth')
    load_checkpoint(target, str(tmp_path / 'detector.pth'))
    assert same(source, target)
    # The same file as pretrained weights of the backbone alone, with mmengine's prefix or not.
    for init_cfg in (dict(), dict(prefix='backbone.')):
        alone = van(
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth'), **init_cfg)
        )
        alone.init_weights()
        assert same(source.backbone, alone)


def test_a_bare_file_in_a_detector_raises_no_false_alarm(tmp_path):
    weights = to_naming(trained().state_dict(), 'official')
    torch.save({**weights, 'head.weight': torch.ones(1)}, tmp_path / 'van.pth')
    lines = log_of(
        lambda: load_checkpoint(Detector(van()), str(tmp_path / 'van.pth'), logger='current')
    )
    assert not [line for line in lines if 'unexpected key' in line]
    assert [line for line in lines if 'missing keys in source state_dict: neck.weight' in line]


def test_a_deep_copy_loads_too():
    source, target = trained(), copy.deepcopy(van())
    target.load_state_dict(to_naming(source.state_dict(), 'official'))
    assert same(source, target)


def test_the_given_dict_is_left_as_it_was():
    weights = to_naming(trained().state_dict(), 'official')
    keys = list(weights)
    van().load_state_dict(weights)
    assert list(weights) == keys


# All or nothing


def check_refused(model, weights, *messages):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        model.load_state_dict(weights)
    for message in messages:
        assert message in str(caught.value)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    return str(caught.value)


def test_another_kernel_size():
    check_refused(
        van(kernel_size=23),
        to_naming(trained(kernel_size=35).state_dict(), 'official'),
        'the checkpoint holds LSKA kernel 35 (1x11 dilated), the model is built for 23 (1x7)',
        "attention=dict(type='LSKA', kernel_size=35, dilation=3)",
    )


def test_another_kind_of_attention():
    check_refused(
        van('LSKA', 23),
        trained(kind='LKA', kernel_size=23).state_dict(),
        'holds LKA kernel 23 (7x7 dilated), the model is built for LSKA kernel 23 (1x7 dilated)',
        "attention=dict(type='LKA', kernel_size=23, dilation=3)",
    )


def test_another_arch():
    with torch.device('meta'):
        base, tiny = VAN('base'), VAN('tiny')
    with pytest.raises(CheckpointError, match=r'holds VAN-base.*built for VAN-tiny') as caught:
        tiny.load_state_dict(base.state_dict())
    assert "arch='base'" in str(caught.value)
    assert 'kernel' not in str(caught.value).splitlines()[0]


def test_no_layer_scales():
    check_refused(
        van(), trained(layer_scale_init_value=0.0).state_dict(), 'layer_scale_init_value=0.0'
    )


@pytest.mark.parametrize('key', ['norm2.bias', 'blocks3.1.mlp.fc1.weight'])
def test_a_missing_weight_is_named(key):
    weights = trained().state_dict()
    del weights[key]
    check_refused(van(), weights, f'1 missing in the checkpoint: {key}')


def test_a_superfluous_weight_is_named():
    weights = trained().state_dict()
    weights['blocks1.0.attn.extra.weight'] = torch.ones(1)
    message = '1 superfluous in the checkpoint: blocks1.0.attn.extra.weight'
    check_refused(van(), weights, message)


def test_a_misshaped_weight_is_named():
    weights = trained().state_dict()
    weights['norm3.bias'] = torch.ones(7)
    check_refused(van(), weights, 'norm3.bias (checkpoint (7,), model (8,))')


def test_many_problems_are_counted():
    weights = {k: v for k, v in trained().state_dict().items() if 'blocks3' not in k}
    assert ' and ' in check_refused(van(), weights, 'missing in the checkpoint', ' more')


def test_weights_of_another_model():
    message = 'the checkpoint is of no VAN, it holds weight, bias'
    check_refused(van(), nn.Linear(2, 2).state_dict(), message)


def test_a_detector_without_weights_for_its_backbone(tmp_path):
    torch.save({'neck.weight': torch.ones(4, 4, 1, 1), 'neck.bias': torch.ones(4)}, tmp_path / 'a')
    with pytest.raises(
        CheckpointError, match=r"no name of the checkpoint begins with 'backbone\.'"
    ):
        load_checkpoint(Detector(van()), str(tmp_path / 'a'))


@pytest.mark.parametrize('half', [slice(None, 120), slice(120, None)], ids=['first', 'second'])
def test_one_of_several_files_is_told_as_such(half):
    weights = dict(list(trained().state_dict().items())[half])
    message = f'holds {len(weights)} of its 196 weights, which fit, and lacks the others'
    assert 'Build the model' not in check_refused(van(), weights, message)


@needs_safe_globals
def test_a_file_that_is_a_part_by_its_name_is_refused(tmp_path):
    path = tmp_path / 'van-00001-of-00002.pth'
    torch.save(trained().state_dict(), path)
    with pytest.raises(CheckpointError, match='by its name part 1 of 2'):
        van(init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()
    whole = path.rename(tmp_path / 'van-00001-of-00001.pth')
    van(init_cfg=dict(type='Pretrained', checkpoint=str(whole))).init_weights()


def test_what_stands_beside_a_bare_backbone_is_named_by_load_from(tmp_path):
    torch.save({**trained().state_dict(), 'extra.weight': torch.ones(1)}, tmp_path / 'a')
    with pytest.raises(CheckpointError, match=r'1 superfluous in the checkpoint: extra\.weight'):
        load_checkpoint(Detector(van()), str(tmp_path / 'a'))


def test_mscan_is_not_taken_for_a_van():
    whole = trained().state_dict()
    weights = {key: value for key, value in whole.items() if 'patch_embed1' not in key}
    weights['patch_embed1.proj.0.weight'] = torch.ones(1)
    assert offer_backbone(weights) is weights


@pytest.mark.parametrize(
    ('names', 'wrong', 'told'),
    [
        ('backbone.', 'backbon', r"begin with 'backbone\.'\. Perhaps 'backbone\.' is meant"),
        ('teacher.encoder.', 'encoder.', r"begin with 'teacher\.encoder\.'"),
        ('', 'model.', r"begin with 'backbone\.'"),
    ],
)
def test_a_wrong_prefix_is_told_with_those_that_there_are(names, wrong, told, tmp_path):
    path = tmp_path / 'van.pth'
    weights = {f'{names}{key}': value for key, value in trained().state_dict().items()}
    torch.save({'state_dict': weights}, path)
    model = van(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=wrong))
    with pytest.raises(CheckpointError, match=f"begins with prefix='{wrong}'; they {told}"):
        model.init_weights()


def test_init_cfg_and_load_from_do_not_load_in_part(tmp_path):
    torch.save(trained(kernel_size=35).state_dict(), tmp_path / 'van.pth')
    model = van(
        kernel_size=23, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'van.pth'))
    )
    with pytest.raises(CheckpointError, match='kernel 35'):
        model.init_weights()
    with pytest.raises(CheckpointError, match='kernel 35'):
        load_checkpoint(Detector(model), str(tmp_path / 'van.pth'))


# What may differ


def test_stages_that_are_not_built_are_left_out_with_one_line():
    source, target = trained(), van(out_indices=(0, 1))
    lines = log_of(lambda: target.load_state_dict(source.state_dict()))
    assert same(target, source)
    assert len([line for line in lines if 'stages that are not built' in line]) == 1


def test_a_stage_that_is_built_must_be_there():
    weights = trained(out_indices=(0, 1)).state_dict()
    check_refused(van(), weights, 'missing in the checkpoint: patch_embed3.projection.weight')


def test_plugins_keep_their_start_with_one_line():
    plugins = [dict(cfg=dict(type='LKA', kernel_size=7), position='after_ffn')]
    source, target = trained(), van(plugins=plugins)
    lines = log_of(lambda: target.load_state_dict(source.state_dict()))
    assert same(source, target)
    assert len([line for line in lines if 'holds no plugins' in line]) == 1


def test_plugins_in_the_file_must_be_complete():
    plugins = [dict(cfg=dict(type='LKA', kernel_size=7), position='after_stage')]
    weights = trained(plugins=plugins).state_dict()
    target = van(plugins=plugins)
    target.load_state_dict(weights)
    del weights['after_stage2.lka.conv1.bias']
    check_refused(target, weights, '1 missing in the checkpoint: after_stage2.lka.conv1.bias')
    check_refused(van(), weights, 'superfluous in the checkpoint: after_stage1.lka')


def test_counters_of_batch_norm_may_be_missing():
    source, target = trained(), van()
    weights = {k: v for k, v in source.state_dict().items() if 'num_batches' not in k}
    target.load_state_dict(weights)
    assert same(source, target)


@pytest.mark.parametrize(('eps', 'warned'), [(1e-6, True), (1e-5, False)])
def test_the_epsilon_of_the_official_detection_code_is_told(eps, warned):
    weights = to_naming(trained().state_dict(), 'official-detection')
    target = van(stage_norm_cfg=dict(type='LN', eps=eps))
    lines = log_of(lambda: target.load_state_dict(weights))
    assert any('eps=1e-05' in line for line in lines) == warned


@pytest.mark.parametrize('counter', ['n_averaged', 'steps'])
@pytest.mark.parametrize('wrapper', ['state_dict', 'ema_state_dict'])
def test_an_average_of_the_model_loads_with_its_counter(counter, wrapper, tmp_path):
    source, target = van(), van()
    weights = {f'module.{key}': value for key, value in source.state_dict().items()}
    target.load_state_dict({wrapper: {counter: torch.tensor(3), **weights}})
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize('part', [slice(0, 9), slice(70, None), slice(-5, None)])
def test_a_part_without_the_stem_or_a_whole_stage_is_still_of_a_van(part):
    weights = dict(list(trained().state_dict().items())[part])
    message = f'holds {len(weights)} of its {len(van().state_dict())} weights, which fit'
    assert 'of no VAN' not in check_refused(van(), weights, message, 'one of several files')
