import pytest
import torch

from mmlska.checkpoint import NAMINGS, to_mmlska, to_naming
from mmlska.checkpoint.naming import TO_MMLSKA, recognise_naming
from mmlska.layers.official_names import rename_keys
from mmlska.models import VAN

ARCH = dict(embed_dims=[4, 4, 4, 4], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2])
KINDS = ['LSKA', 'LKA', 'LSKATrivial', 'LKATrivial']


def weights(kind='LSKA'):
    return VAN(ARCH, dict(type=kind, kernel_size=11)).state_dict()


@pytest.mark.parametrize(
    ('naming', 'kind'),
    [
        (naming, kind)
        for naming in NAMINGS
        for kind in (['LKA'] if naming == 'transformers' else KINDS)
        if naming != 'mmpretrain'
    ],
)
def test_every_naming_comes_back(kind, naming):
    there = to_naming(weights(kind), naming)
    assert list(to_mmlska(there)) == list(weights(kind))


def test_our_own_names_are_translated_to_themselves():
    assert list(to_mmlska(weights())) == list(weights())


def test_the_official_names_are_the_official_ones(golden):
    # From the classification to the detection code, as dumped from both.
    keymap = golden('b_van/keymap_small_cls_to_mm.json')
    keymap = {key: value for key, value in keymap.items() if not key.startswith('head.')}
    ours = set(weights())
    assert set(to_naming(weights(), 'official')) == set(keymap)
    assert set(to_naming(weights(), 'official-detection')) == set(keymap.values())
    for classification, detection in keymap.items():
        renamed = to_mmlska({classification: 0})
        assert renamed == to_mmlska({detection: 0})
        assert set(renamed) <= ours


@pytest.mark.parametrize(
    ('naming', 'expected'),
    [
        ('official', 'official classification'),
        ('official-detection', 'official detection'),
        ('mmlska', 'mmlska'),
    ],
)
def test_namings_are_recognised(naming, expected):
    keys = [*to_naming(weights(), naming), 'head.weight', 'head.bias']
    assert recognise_naming(keys) == expected


@pytest.mark.parametrize(
    'keys',
    [
        [],
        ['head.weight'],
        ['conv1.weight', 'layer1.0.conv1.weight'],
        ['patch_embed1.proj.weight', 'block1.0.attn.q.weight', 'norm1.weight'],  # PVTv2
    ],
)
def test_other_models_are_not_taken_for_a_van(keys):
    assert recognise_naming(keys) is None


def test_an_unknown_naming_names_the_known_ones():
    with pytest.raises(ValueError, match="'timm' is unknown: allowed are mmlska, mmpretrain, off"):
        to_naming(weights(), 'timm')


def test_two_names_of_one_weight_are_refused():
    with pytest.raises(KeyError, match='twice'):
        rename_keys({'block1.0.norm1.weight': 0, 'blocks1.0.norm1.weight': 1}, '', TO_MMLSKA)


def test_only_the_weights_under_the_prefix_are_renamed():
    state = {'neck.block1.x': 0, 'backbone.block1.0.mlp.dwconv.dwconv.bias': torch.ones(1)}
    rename_keys(state, 'backbone.', TO_MMLSKA)
    assert set(state) == {'neck.block1.x', 'backbone.blocks1.0.mlp.dwconv.bias'}
