"""A backbone is built out of its weights alone, in the names of any codebase."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch

import mmlska
from mmlska.checkpoint import CheckpointError, read_checkpoint, to_naming
from mmlska.checkpoint import downloads as downloading
from mmlska.checkpoint.known_weights import BY_HAND, KNOWN_WEIGHTS
from mmlska.checkpoint.own_models import find_own_model, own_models
from mmlska.engine.config import load_config
from mmlska.models import VAN, ContainerLight, GhostNetV2, pretrained
from mmlska.registry import MODELS

sys.path.append(str(Path(__file__).parents[1] / 'test_checkpoint'))
import foreign

SMALL = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], ffn_ratios=[4, 4, 4, 4])
ATTENTIONS = [
    dict(type='LSKA', kernel_size=35, dilation=3),
    dict(type='LKA', kernel_size=11, dilation=2),
    dict(type='LSKATrivial', kernel_size=7),
    dict(type='LKATrivial', kernel_size=5),
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('a test asked for the network')

    monkeypatch.setattr(downloading, 'urlopen', refuse)


def outputs(model):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(image)


def save(model, path, **wrapped):
    torch.save(wrapped or model.state_dict(), path)
    return path


@pytest.mark.parametrize('attention', ATTENTIONS, ids=lambda attention: attention['type'])
def test_kernel_and_architecture_are_read_off(attention, tmp_path):
    trained = VAN(SMALL, attention=attention)
    model = mmlska.from_pretrained(save(trained, tmp_path / 'a.pth'))
    assert not model.training
    assert all(map(torch.equal, outputs(model), outputs(trained)))


@pytest.mark.parametrize(
    ('name', 'eps'),
    [
        ('official_classification_lka', 1e-6),
        ('official_detection_lska', 1e-5),
        ('mmpretrain_van_tiny', 1e-5),
        ('transformers_van_tiny', 1e-6),
    ],
)
def test_the_naming_tells_the_epsilon(name, eps, tmp_path):
    torch.save(foreign.weights(name), tmp_path / 'a.pth')
    model = mmlska.from_pretrained(str(tmp_path / 'a.pth'))
    assert model.norm1.eps == eps
    assert model.has_loaded_weights


@pytest.mark.parametrize(('name', 'width'), [('100', 1.0), ('130', 1.3), ('160', 1.6)])
def test_ghostnetv2_by_its_width(name, width, tmp_path):
    torch.save(foreign.weights(f'timm_ghostnetv2_{name}'), tmp_path / 'a.pth')
    model = mmlska.from_pretrained(tmp_path / 'a.pth')
    assert isinstance(model, GhostNetV2)
    assert model.out_channels == GhostNetV2(width).out_channels


def test_container_light(tmp_path):
    trained = ContainerLight()
    model = mmlska.from_pretrained(save(trained, tmp_path / 'a.pth'))
    assert isinstance(model, ContainerLight)
    assert all(map(torch.equal, outputs(model), outputs(trained)))


def test_the_backbone_of_a_detector_and_options_of_ones_own(tmp_path):
    trained = VAN(SMALL, attention=ATTENTIONS[0])
    state = {f'backbone.{key}': value for key, value in trained.state_dict().items()}
    state['neck.weight'] = torch.ones(3)
    path = save(trained, tmp_path / 'a.pth', state_dict=state, meta={})
    model = mmlska.from_pretrained(path, out_indices=(1,), drop_path_rate=0.2)
    (found,) = outputs(model)
    assert torch.equal(found, outputs(trained)[1])
    with pytest.raises(CheckpointError, match='holds LSKA kernel 35'):
        mmlska.from_pretrained(path, attention=dict(type='LSKA', kernel_size=23))


def test_a_van_of_another_attention_is_told_as_such(tmp_path):
    path = save(VAN(SMALL, attention=dict(type='ECA')), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='attention is none of LSKA'):
        mmlska.from_pretrained(path)


def test_other_weights_are_refused(tmp_path):
    torch.save({'layer1.0.conv1.weight': torch.ones(1)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'none of VAN.*it holds layer1\.0\.conv1'):
        mmlska.from_pretrained(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('van-bo', 'nearest names are .*van-b0'),
        ('van-lska-tiny', 'no address that a program can fetch.*Separable-Kernel-Attention'),
    ],
)
def test_unknown_names_are_told(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        mmlska.from_pretrained(name)
    with pytest.raises(FileNotFoundError):
        mmlska.from_pretrained('van.pth')


def test_a_model_of_the_package_gives_its_backbone():
    """The same as the config of its card with ``load_from``."""
    name, own = next(iter(own_models().items()))
    backbone = load_config(own.config, own.options).model.backbone
    built = MODELS.build(backbone)
    weights = read_checkpoint(find_own_model(f'mmlska://{name}'))
    prefix = 'backbone.'
    built.load_state_dict(
        {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    )
    model = mmlska.from_pretrained(f'mmlska://{name}')
    assert not model.training
    assert all(map(torch.equal, outputs(model), outputs(built)))


@pytest.mark.parametrize('prefix', ['', 'mmlska://'])
def test_an_unknown_model_of_the_package_is_told_with_the_nearest(prefix):
    name = next(iter(own_models()))
    with pytest.raises((ValueError, CheckpointError), match=f'mmlska://{name}'):
        mmlska.from_pretrained(f'{prefix}{name[:-1]}')


def test_the_hash_of_a_file_is_checked(tmp_path):
    path = save(VAN(SMALL), tmp_path / 'a.pth')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert mmlska.from_pretrained(path, sha256=digest.upper()).has_loaded_weights
    with pytest.raises(
        CheckpointError, match=f'has the SHA-256 {digest}, and 00000000 is expected'
    ):
        mmlska.from_pretrained(path, sha256='0' * 8)
    with pytest.raises(ValueError, match="sha256='abc' is no hash"):
        mmlska.from_pretrained(path, sha256='abc')


def test_what_is_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    known = KNOWN_WEIGHTS['van-b0']
    cached = downloading.cached_path(known.url, tmp_path)
    torch.save(foreign.weights('official_classification_lka'), cached)
    model = mmlska.from_pretrained('van-b0', cache_dir=tmp_path)
    assert isinstance(model, VAN)
    digits = KNOWN_WEIGHTS['van-b0-mmpretrain']
    torch.save({}, downloading.cached_path(digits.url, tmp_path))
    with pytest.raises(CheckpointError, match=f'{digits.sha256} is expected'):
        mmlska.from_pretrained('van-b0-mmpretrain', cache_dir=tmp_path)


def test_the_table_is_whole():
    assert all(known.url.startswith('https://') for known in KNOWN_WEIGHTS.values())
    assert all(known.publisher and known.licence for known in KNOWN_WEIGHTS.values())
    assert len({known.url for known in KNOWN_WEIGHTS.values()}) == len(KNOWN_WEIGHTS)
    assert not any(name.startswith(tuple(BY_HAND)) for name in KNOWN_WEIGHTS)
    hashes = [known.sha256 for known in KNOWN_WEIGHTS.values() if known.sha256]
    assert len(hashes) == 7 and all(len(digits) == 8 for digits in hashes)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'large'])
def test_names_of_transformers_are_written_as_its_class_writes_them(arch):
    names = foreign.shapes(f'transformers_van_{arch}')
    heads = ('van.layernorm.', 'classifier.')
    expected = {key: tuple(size) for key, size in names.items() if not key.startswith(heads)}
    with torch.device('meta'):
        state = VAN(arch, attention=dict(type='LKA')).state_dict()
    written = to_naming(state, 'transformers')
    assert {key: tuple(value.shape) for key, value in written.items()} == expected


def test_transformers_has_no_names_for_lska():
    with pytest.raises(ValueError, match='names for LKA alone'):
        to_naming(VAN(SMALL).state_dict(), 'transformers')


def test_the_package_offers_it_without_importing_anything():
    assert mmlska.from_pretrained is pretrained.from_pretrained
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        mmlska.other  # noqa: B018
