import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import load_checkpoint
from routes import log_of
from torch import nn

from mmlska.checkpoint import CheckpointError, to_naming
from mmlska.conversion.warm_start import convert_van
from mmlska.models import VAN, decompose_kernel

ARCH = dict(embed_dims=[4, 6, 8, 10], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2])
GATE = 'blocks1.0.attn.spatial_gating_unit.'


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def van(kind, kernel_size, dilation=None, **options):
    attention = dict(type=kind, kernel_size=kernel_size, dilation=dilation)
    return (
        VAN(options.pop('arch', ARCH), attention, **options).double().eval().requires_grad_(False)
    )


def trained(*args, **options):
    """A model none of whose weights is an initial one, not even the biases and layer scales."""
    model = van(*args, **options)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def gates(model):
    blocks = [block for i in range(4) for block in model.stage(i)[1]]
    return [block.attn.spatial_gating_unit for block in blocks]


def converted(source, kind, kernel_size, dilation=None):
    """A model with the weights of another one, and the energies that its kernels kept."""
    dilation = decompose_kernel(kernel_size, dilation)[2]
    target = van(kind, kernel_size, dilation)
    attention = dict(type=kind, kernel_size=kernel_size, dilation=dilation)
    weights, energies = convert_van(source.state_dict(), attention)
    target.load_state_dict(weights)
    return target, energies


def distance(first, second, size=(75, 50)):
    """Largest difference of the maps of two models, relative to the largest value."""
    images = torch.randn(2, 3, *size, dtype=torch.double)
    with torch.no_grad():
        pairs = zip(first(images), second(images), strict=True)
        return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def response(gate, size=91):
    """What the cascade of a gate answers to an empty map and to a map with one bright pixel."""
    channels = gate.conv1.in_channels
    maps = torch.zeros(2, channels, size, size, dtype=torch.double)
    maps[1, :, size // 2, size // 2] = 1
    for conv in list(gate.children())[:-1]:
        maps = conv(maps)
    return maps


# Where nothing is lost


@pytest.mark.parametrize('kind', ['LKA', 'LSKA'])
@pytest.mark.parametrize('kernel_size', [35, 53, 65])
def test_a_larger_kernel_at_the_same_dilation_is_the_same_function(kind, kernel_size):
    source = trained(kind, 23)
    target, energies = converted(source, kind, kernel_size)
    assert distance(source, target) < 1e-12
    assert all(row == {'local': 1, 'dilated': 1} for row in energies.values())
    again, _ = converted(target, kind, 23)
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in source.state_dict().items()
    )


@pytest.mark.parametrize('kind', ['LKA', 'LSKA'])
@pytest.mark.parametrize(('kernel_size', 'dilation'), [(23, 3), (7, 2), (11, 6), (9, 1)])
def test_the_same_attention_is_left_as_it_is(kind, kernel_size, dilation):
    weights = trained(kind, kernel_size, dilation).state_dict()
    attention = dict(type=kind, kernel_size=kernel_size, dilation=dilation)
    same, _ = convert_van(weights, attention)
    assert list(same) == list(weights)
    assert all(torch.equal(same[key], value) for key, value in weights.items())


def make_separable(model, row_bias=False):
    """LSKA weights whose rows have no bias are those of an LKA, at the borders too."""
    for gate in gates(model):
        for row in (gate.conv0h, gate.conv_spatial_h):
            row.bias.data *= row_bias
    return model


@pytest.mark.parametrize('kernel_size', [11, 23, 35])
def test_separable_kernels_come_through_lka_and_back(kernel_size):
    source = make_separable(trained('LSKA', kernel_size))
    lka, energies = converted(source, 'LKA', kernel_size)
    assert distance(source, lka) < 1e-10
    back, energies_back = converted(lka, 'LSKA', kernel_size)
    assert distance(source, back) < 1e-10
    for row in (*energies.values(), *energies_back.values()):
        assert row['local'] == pytest.approx(1)
        assert row['dilated'] == pytest.approx(1)


def test_separable_lka_becomes_a_larger_lska():
    lka, _ = converted(make_separable(trained('LSKA', 23)), 'LKA', 23)
    lska, _ = converted(lka, 'LSKA', 53)
    assert distance(lka, lska) < 1e-10


@pytest.mark.parametrize('kernel_size', [23, 47])
def test_the_bias_of_a_row_is_merged_exactly_inside(kernel_size):
    source = trained('LSKA', 23)
    target, _ = converted(source, 'LKA', kernel_size)
    for old, new in zip(gates(source), gates(target), strict=True):
        first, second = response(old), response(new)
        assert torch.allclose(first[..., 30:60, 30:60], second[..., 30:60, 30:60], atol=1e-10)
        assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize('kind', ['LKA', 'LSKA'])
def test_without_dilation_every_separable_kernel_is_kept_inside(kind):
    source = trained('LSKA', 11)
    target, energies = converted(source, kind, 11, dilation=1)
    assert all(row['composed'] == pytest.approx(1) for row in energies.values())
    for old, new in zip(gates(source), gates(target), strict=True):
        assert torch.allclose(
            response(old)[..., 30:60, 30:60], response(new)[..., 30:60, 30:60], atol=1e-6
        )


# Best approximations


def test_each_kernel_becomes_its_best_product_of_row_and_column():
    source = trained('LKA', 23)
    target, energies = converted(source, 'LSKA', 23)
    for old, new, kept in zip(gates(source), gates(target), energies.values(), strict=True):
        pairs = {
            'local': (old.conv0, new.conv0h, new.conv0v),
            'dilated': (old.conv_spatial, new.conv_spatial_h, new.conv_spatial_v),
        }
        for name, (whole, row, column) in pairs.items():
            values = torch.linalg.svdvals(whole.weight)
            error = (whole.weight - column.weight * row.weight).square().sum((1, 2, 3))
            assert torch.allclose(error, values[..., 1:].square().sum((1, 2)))
            share = values[..., 0].square().sum() / values.square().sum()
            assert kept[name] == pytest.approx(float(share))
            assert torch.equal(column.bias, whole.bias)
            assert not row.bias.any()


def test_a_smaller_kernel_is_the_middle_of_the_larger_one():
    source = trained('LKA', 35)
    target, energies = converted(source, 'LKA', 23)
    whole = source.get_parameter(GATE + 'conv_spatial.weight')
    middle = target.get_parameter(GATE + 'conv_spatial.weight')
    assert torch.equal(middle, whole[..., 2:9, 2:9])
    kept = float(middle.square().sum() / whole.square().sum())
    assert energies['blocks1.0'] == {'local': 1, 'dilated': pytest.approx(kept)}
    # Cropped before it is separated: the nearest product of the middle.
    lska, _ = converted(source, 'LSKA', 23)
    direct, _ = converted(target, 'LSKA', 23)
    assert all(
        torch.allclose(value, direct.state_dict()[key]) for key, value in lska.state_dict().items()
    )


CHANGES = [
    (('LKA', 23), ('LSKA', 11)),
    (('LKA', 23), ('LSKA', 7)),
    (('LKA', 23), ('LSKA', 23, 4)),
    (('LSKA', 23), ('LKA', 11)),
    (('LKA', 11), ('LKA', 23)),
    (('LSKA', 7), ('LSKA', 35)),
    (('LSKA', 35), ('LSKA', 23, 2)),
    (('LKA', 23), ('LSKA', 5, 1)),
    (('LKA', 5, 3), ('LSKA', 3)),
]


@pytest.mark.parametrize(('before', 'after'), CHANGES)
def test_another_dilation_approximates_the_composed_kernel(before, after):
    source = trained(*before)
    target, energies = converted(source, *after)
    # For a gate of LKA the bright pixel shows the composed kernel, for any its energy.
    for old, new, row in zip(gates(source), gates(target), energies.values(), strict=True):
        first, second = response(old), response(new)
        kernel, found = first[1] - first[0], second[1] - second[0]
        kept = 1 - (kernel - found).square().sum() / kernel.square().sum()
        assert row['composed'] == pytest.approx(float(kept), abs=1e-9)
        assert 0 <= row['composed'] <= 1
        # The answer to an empty map, away from the borders, is kept.
        assert torch.allclose(first[0, :, 45, 45], second[0, :, 45, 45], atol=1e-9)


# Form of the result


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_the_data_type_is_kept(dtype):
    weights = {key: value.to(dtype) for key, value in trained('LKA', 23).state_dict().items()}
    new, _ = convert_van(weights, dict(type='LSKA', kernel_size=35, dilation=3))
    assert {value.dtype for value in new.values()} == {dtype}
    assert list(new) == list(van('LSKA', 35).state_dict())


def test_the_given_weights_are_left_as_they_were():
    weights = trained('LKA', 23).state_dict()
    before = copy.deepcopy(weights)
    convert_van(weights, dict(type='LSKA', kernel_size=7, dilation=2))
    assert list(weights) == list(before)
    assert all(torch.equal(weights[key], value) for key, value in before.items())


def test_other_kinds_are_refused():
    with pytest.raises(CheckpointError, match=r'only LKA and LSKA can .* holds LSKATrivial kernel'):
        convert_van(
            VAN(ARCH, dict(type='LSKATrivial', kernel_size=7)).state_dict(),
            dict(type='LSKA', kernel_size=7, dilation=2),
        )


@pytest.mark.parametrize(
    ('attention', 'message'),
    [
        (dict(type='LSKA', kernel_size=24), 'Nearest legal sizes: 23 and 29'),
        (dict(type='LSKA', kernel_size=65, dilation=4), 'kernel_size=65 with dilation=4'),
        (dict(type='ECA', kernel_size=3), "'ECA' is unknown: allowed are lka, lska"),
    ],
)
def test_illegal_targets_are_refused(attention, message):
    with pytest.raises(ValueError, match=message):
        convert_van(trained('LKA', 23).state_dict(), attention)


def test_the_dilation_of_the_paper_need_not_be_given():
    weights = trained('LKA', 23).state_dict()
    first, _ = convert_van(weights, dict(type='lska', kernel_size=11))
    second, _ = convert_van(weights, dict(type='LSKA', kernel_size=11, dilation=2))
    assert all(torch.equal(first[key], second[key]) for key in second)


def missing(weights):
    del weights['blocks3.1.attn.spatial_gating_unit.conv0.bias']


def misshaped(weights):
    key = 'blocks3.1.attn.spatial_gating_unit.conv_spatial.weight'
    weights[key] = weights[key][..., 1:-1, 1:-1]


def not_finite(weights):
    weights['blocks3.1.attn.spatial_gating_unit.conv0.weight'][0] = float('nan')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (missing, r'blocks3\.1\.attn\.spatial_gating_unit\.conv0\.bias is missing'),
        (misshaped, r'conv_spatial\.weight has the shape \(8, 1, 5, 5\) instead of \(8, 1, 7, 7\)'),
        (not_finite, r'conv0\.weight holds values that are not finite'),
    ],
)
def test_a_damaged_gate_is_named(damage, message):
    weights = trained('LKA', 23).state_dict()
    damage(weights)
    with pytest.raises(CheckpointError, match=f'cannot be converted: .*{message}'):
        convert_van(weights, dict(type='LSKA', kernel_size=23, dilation=3))


# Through init_cfg


class Detector(BaseModule):
    def __init__(self, backbone, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = backbone
        self.neck = nn.Conv2d(4, 4, 1)


def same(model, weights):
    state = model.state_dict()
    return set(state) == set(weights) and all(
        torch.equal(value, state[key]) for key, value in weights.items()
    )


@pytest.fixture
def lka(tmp_path):
    """An LKA checkpoint in the official names, with a head."""
    source = trained('LKA', 23)
    weights = to_naming(source.state_dict(), 'official')
    torch.save({'state_dict': {**weights, 'head.weight': torch.ones(3)}}, tmp_path / 'lka.pth.tar')
    return source, str(tmp_path / 'lka.pth.tar')


CONVERTS = [
    dict(),
    dict(attention='LSKA'),
    dict(attention='lska', kernel_size=35),
    dict(kernel_size=35, dilation=3),
]


@pytest.mark.parametrize('convert', CONVERTS)
@pytest.mark.parametrize('pretrained', ['Pretrained', PretrainedInit])
def test_init_cfg_converts(lka, convert, pretrained):
    source, path = lka
    init_cfg = dict(type=pretrained, checkpoint=path, convert=convert)
    model = van('LSKA', 35, init_cfg=init_cfg)
    lines = log_of(model.init_weights)
    assert same(model, converted(source, 'LSKA', 35)[0].state_dict())
    assert model.init_cfg == {**init_cfg, 'type': 'mmlska.WarmStart'}
    told = [line for line in lines if line.startswith(('warm start', 'energy of the kernels'))]
    assert 'LKA kernel 23 (7x7 dilated) with dilation 3 becomes LSKA kernel 35' in told[0]
    assert 'not the published model' in told[0]
    assert 'local' in told[1]
    assert len(told) == 2


def test_init_cfg_converts_inside_a_detector_and_with_a_prefix(lka, tmp_path):
    source, path = lka
    wanted = converted(source, 'LSKA', 35)[0].state_dict()
    detector = Detector(
        van('LSKA', 35, init_cfg=dict(type='Pretrained', checkpoint=path, convert=dict()))
    )
    detector.init_weights()
    assert same(detector.backbone, wanted)
    torch.save(Detector(source).state_dict(), tmp_path / 'detector.pth')
    init_cfg = Config(
        dict(
            cfg=[
                dict(type='Constant', layer='LayerNorm', val=7.0),
                dict(
                    type='Pretrained',
                    checkpoint=str(tmp_path / 'detector.pth'),
                    prefix='backbone.',
                    convert=dict(),
                ),
            ]
        )
    ).cfg
    model = van('LSKA', 35, init_cfg=init_cfg)
    model.init_weights()
    assert same(model, wanted)


def test_fewer_stages_and_the_same_attention(lka):
    source, path = lka
    init_cfg = dict(type='Pretrained', checkpoint=path, convert=dict())
    model = van('LKA', 23, out_indices=(0, 1), init_cfg=init_cfg)
    model.init_weights()
    state = source.state_dict()
    assert same(model, {key: state[key] for key in model.state_dict()})


def test_only_the_initialisation_converts(lka, tmp_path):
    source, path = lka
    model = van('LSKA', 35, init_cfg=dict(type='Pretrained', checkpoint=path, convert=dict()))
    message = 'holds LKA kernel 23 .* built for LSKA kernel 35'
    for attempt in range(2):
        with pytest.raises(CheckpointError, match=message):
            model.load_state_dict(source.state_dict())
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(Detector(model), path)
        if attempt == 0:
            model.init_weights()
    torch.save(Detector(source).state_dict(), tmp_path / 'detector.pth')
    whole = dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth'))
    model = van('LSKA', 35, init_cfg=dict(type='Pretrained', checkpoint=path, convert=dict()))
    with pytest.raises(CheckpointError, match=message):
        Detector(model, whole).init_weights()


def test_a_failed_initialisation_leaves_no_trace(lka, tmp_path):
    _, path = lka
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth'), convert=dict())
    model = van('LSKA', 35, init_cfg=init_cfg)
    with pytest.raises(FileNotFoundError):
        model.init_weights()
    assert model.init_cfg == {**init_cfg, 'type': 'mmlska.WarmStart'}
    with pytest.raises(CheckpointError):
        load_checkpoint(model, path)


@pytest.mark.parametrize(
    ('convert', 'message'),
    [
        (dict(kernel_size=23), r'kernel_size=23, but .* LSKA kernel 35 .* with dilation 3'),
        (dict(attention='LKA'), r"attention='LKA', but .* LSKA kernel 35"),
        (dict(kernel_size=35, dilation=2), r'dilation=2, but .* with dilation 3'),
        (dict(k=35), 'it is a dict, empty or with attention, kernel_size, dilation'),
        (True, 'convert=True is not possible: it is a dict'),
    ],
)
def test_convert_must_agree_with_the_model(lka, convert, message):
    init_cfg = dict(type='Pretrained', checkpoint=lka[1], convert=convert)
    with pytest.raises(ValueError, match=message):
        van('LSKA', 35, init_cfg=init_cfg).init_weights()


def test_other_attentions_of_the_model_are_refused(lka):
    init_cfg = dict(type='Pretrained', checkpoint=lka[1], convert=dict())
    model = VAN(ARCH, dict(type='LSKATrivial', kernel_size=23), init_cfg=init_cfg)
    with pytest.raises(ValueError, match=r'LKA and LSKA only, .* LSKATrivial kernel 23'):
        model.init_weights()
    model = VAN(ARCH, dict(type='ECA'), init_cfg=init_cfg)
    with pytest.raises(ValueError, match='built for another attention'):
        model.init_weights()


@pytest.mark.parametrize('what', ['arch', 'incomplete', 'other model'])
def test_the_result_is_loaded_whole_or_not_at_all(tmp_path, what):
    source = trained('LKA', 23, arch=dict(ARCH, depths=[1, 1, 1, 1]) if what == 'arch' else ARCH)
    weights = source.state_dict()
    if what == 'incomplete':
        del weights['norm2.weight']
    if what == 'other model':
        weights = nn.Linear(2, 2).state_dict()
    torch.save(weights, tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), convert=dict())
    model = van('LSKA', 35, init_cfg=init_cfg)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match='VAN loads none of these weights'):
        model.init_weights()
    assert same(model, before)


def test_the_error_without_convert_offers_it():
    with pytest.raises(CheckpointError) as caught:
        van('LSKA', 35).load_state_dict(trained('LKA', 23).state_dict())
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(
        'LKA kernel 23 (7x7 dilated), the model is built for LSKA kernel 35 (1x11 dilated).'
    )
    assert "attention=dict(type='LKA', kernel_size=23, dilation=3)" in lines[1]
    assert 'convert=dict() in init_cfg' in lines[1]


@pytest.mark.parametrize(
    'weights',
    [
        lambda: VAN(ARCH, dict(type='LKATrivial', kernel_size=7)).state_dict(),
        lambda: trained('LKA', 23, arch=dict(ARCH, depths=[1, 1, 1, 1])).state_dict(),
        lambda: {'conv1.weight': torch.ones(1)},
    ],
)
def test_the_error_does_not_offer_it_where_it_cannot_help(weights):
    with pytest.raises(CheckpointError) as caught:
        van('LSKA', 35).load_state_dict(weights())
    assert 'convert' not in str(caught.value)
