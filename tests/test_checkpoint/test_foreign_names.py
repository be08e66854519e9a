"""Every naming is taken as the foreign class writes it, not as our own tables tell it."""

import json

import foreign
import pytest
import torch
from routes import ROUTES, log_of

from mmlska.checkpoint.naming import HEAD_KEY, canonical, recognise_naming
from mmlska.conversion.checkpoint_files import convert_checkpoint
from mmlska.layers import ECA, MixedAffinity
from mmlska.models import VAN, GhostNetV2

ARCHS = ['tiny', 'small', 'base', 'large']
SMALL = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], ffn_ratios=[4, 4, 4, 4])
LKA = dict(type='LKA', kernel_size=23)
LSKA = dict(type='LSKA', kernel_size=23)

VANS = {
    **{f'{codebase}_van_{arch}': (arch, LKA) for codebase in ('mmpretrain', 'transformers')
       for arch in ARCHS},
    'official_classification_lka': (SMALL, LKA),
    'official_classification_lska': (SMALL, LSKA),
    'official_detection_lska': (SMALL, LSKA),
}  # fmt: skip
TITLES = {
    'mmpretrain': 'mmpretrain',
    'transformers': 'transformers',
    'official_classification': 'official classification',
    'official_detection': 'official detection',
}


def title(name):
    return next(text for start, text in TITLES.items() if name.startswith(start))


def bare(name):
    return name.removeprefix('backbone.')


def ours(weights):
    """Foreign weights of a backbone under our names."""
    weights = {canonical(bare(key)): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not HEAD_KEY.fullmatch(key)}


@pytest.mark.parametrize('name', VANS)
def test_every_weight_of_a_van_has_its_place(name):
    arch, attention = VANS[name]
    with torch.device('meta'):
        expected = VAN(arch, attention).state_dict()
    found = ours(foreign.shapes(name))
    assert {key: tuple(shape) for key, shape in found.items()} == {
        key: tuple(value.shape) for key, value in expected.items()
    }


@pytest.mark.parametrize('name', VANS)
def test_the_naming_is_recognised(name):
    assert recognise_naming([bare(key) for key in foreign.shapes(name)]) == title(name)


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize('name', [name for name in VANS if not name.endswith(('base', 'large'))])
def test_a_van_is_loaded_whole_on_every_route(name, route, tmp_path):
    arch, attention = VANS[name]
    model, weights = VAN(arch, attention), foreign.weights(name)
    route(model, weights, tmp_path)
    expected, state = ours(weights), model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ('naming', 'name', 'warned'),
    [
        ('mmpretrain', 'mmpretrain_van_tiny', True),
        ('official detection', 'official_detection_lska', True),
        ('transformers', 'transformers_van_tiny', False),
        ('official classification', 'official_classification_lka', False),
    ],
)
def test_another_epsilon_is_told(naming, name, warned):
    arch, attention = VANS[name]
    lines = log_of(lambda: VAN(arch, attention).load_state_dict(foreign.weights(name)))
    told = [
        line for line in lines if f'names of {naming}, whose stage norms have eps 1e-05' in line
    ]
    assert len(told) == warned
    norm = dict(type='LN', eps=1e-5)
    model = VAN(arch, attention, stage_norm_cfg=norm)
    lines = log_of(lambda: model.load_state_dict(foreign.weights(name)))
    assert not [line for line in lines if 'eps' in line]


@pytest.mark.parametrize('arch', ARCHS)
def test_what_is_written_for_mmpretrain_has_its_names_and_shapes(arch, tmp_path):
    expected = foreign.shapes(f'mmpretrain_van_{arch}')
    weights = VAN(arch, LKA).state_dict()
    weights |= {key.replace('fc.', ''): torch.ones(expected[key]) for key in expected
                if key.startswith('head.')}  # fmt: skip
    torch.save(weights, tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'mmpretrain')
    written = torch.load(tmp_path / 'b.pth', weights_only=True)['state_dict']
    assert {key: list(value.shape) for key, value in written.items()} == expected


def test_transformers_weights_are_converted_with_their_classifier(tmp_path):
    weights = foreign.weights('transformers_van_tiny')
    torch.save(weights, tmp_path / 'a.pth')
    report = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'mmpretrain')
    assert 'in transformers names' in report
    written = torch.load(tmp_path / 'b.pth', weights_only=True)['state_dict']
    assert {key: list(value.shape) for key, value in written.items()} == foreign.shapes(
        'mmpretrain_van_tiny'
    )
    assert torch.equal(written['head.fc.bias'], weights['classifier.bias'])


@pytest.mark.parametrize('width', [1.0, 1.3, 1.6])
def test_every_weight_of_ghostnetv2_has_its_place(width):
    weights = foreign.weights(f'timm_ghostnetv2_{100 * width:.0f}')
    model = GhostNetV2(width)
    model.load_state_dict(weights)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(('name', 'channels'), [('timm_eca_256', 256), ('official_eca_64', 64)])
def test_eca_has_the_name_and_shape_of_the_others(name, channels):
    found = {key: list(value.shape) for key, value in ECA(channels).state_dict().items()}
    assert found == foreign.shapes(name)


def test_the_official_mix_block_of_container_is_taken():
    weights = foreign.weights('official_container_mixblock')
    layer = MixedAffinity(16, num_heads=4, kernel_size=5)
    inside = {key: weights[key] for key in weights if key.startswith(('conv', 'sa_weight'))}
    layer.load_state_dict(inside)
    assert torch.equal(layer.conv.weight, weights['conv.weight'])
    assert layer.alpha.item() == pytest.approx(weights['sa_weight'].sigmoid().item())


def test_every_file_tells_its_origin():
    for path in foreign.FOLDER.glob('*.json'):
        origin = json.loads(path.read_text())['origin']
        assert '.state_dict() of ' in origin, path.name


# Where the foreign class is installed


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    # mmpretrain's VAN returns None here.
    model.eval()
    return model


def relative_difference(first, second):
    pairs = zip(first, second, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@torch.no_grad()
def test_the_outputs_are_those_of_mmpretrain(tmp_path):
    models = foreign.require('mmpretrain.models')
    theirs = randomise(models.VAN('tiny', out_indices=(0, 1, 2, 3)))
    model = VAN('tiny', LKA, stage_norm_cfg=dict(type='LN', eps=1e-5)).eval()
    model.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    assert relative_difference(model(images), theirs(images)) < 1e-5
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'mmpretrain')
    written = torch.load(tmp_path / 'b.pth', weights_only=True)['state_dict']
    taken = models.VAN('tiny').load_state_dict({bare(key): written[key] for key in written})
    assert not taken.missing_keys
    assert not taken.unexpected_keys


@torch.no_grad()
def test_the_outputs_are_those_of_transformers():
    transformers = foreign.require('transformers')
    config = transformers.VanConfig(hidden_sizes=[32, 64, 160, 256], depths=[3, 3, 5, 2])
    theirs = randomise(transformers.VanModel(config))
    model = VAN('tiny', LKA).eval()
    model.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    outputs = theirs(images, output_hidden_states=True).hidden_states
    assert relative_difference(model(images), outputs) < 1e-5


@torch.no_grad()
def test_the_outputs_are_those_of_timm():
    timm = foreign.require('timm')
    theirs = randomise(timm.create_model('ghostnetv2_100'))
    model = GhostNetV2(1.0, with_last_conv=True).eval()
    model.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    assert relative_difference(model(images)[-1:], [theirs.forward_features(images)]) < 1e-5
