"""The classifier equals the official one, and keeps the contract of timm's models without timm."""

import copy

import pytest
import torch

from mmlska.checkpoint import CheckpointError, to_mmlska
from mmlska.checkpoint.recognition import recognise_sizes
from mmlska.models import VAN, VANClassifier

SMALL = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], ffn_ratios=[8, 8, 4, 4])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VANClassifier(num_classes=5, arch=SMALL).eval()


@pytest.mark.parametrize(
    ('name', 'attention'),
    [
        ('small_lka_cls', dict(type='LKA', kernel_size=23)),
        ('small_lska_k23_cls', dict(type='LSKA', kernel_size=23)),
    ],
)
def test_the_logits_are_those_of_the_official_code(golden, name, attention):
    """A linear layer on the mean of its last map, with its weights of the head."""
    weights, tensors = golden(f'b_van/{name}')
    arch = recognise_sizes(to_mmlska(weights))
    model = VANClassifier(len(weights['head.bias']), arch=arch, attention=attention)
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model.double().eval()(tensors['input'].double())
    pooled = tensors['out_f64.3'].mean((2, 3))
    expected = pooled @ weights['head.weight'].double().T + weights['head.bias'].double()
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)


def test_parts_make_the_whole(model):
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert torch.equal(pooled, features.mean((2, 3)))
        assert torch.equal(model.get_classifier()(pooled), model(x))


def test_feature_info_tells_what_the_modules_give(model):
    outputs = {}

    def keep(name):
        return lambda module, args, out: outputs.update({name: out})

    for info in model.feature_info:
        model.get_submodule(info['module']).register_forward_hook(keep(info['module']))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 96))
    for info in model.feature_info:
        size = (1, info['num_chs'], 64 // info['reduction'], 96 // info['reduction'])
        assert outputs[info['module']].shape == size


@pytest.mark.parametrize(
    ('indices', 'stages'), [(None, (0, 1, 2, 3)), (2, (2, 3)), ([1], (1,)), ([0, -1], (0, 3))]
)
def test_intermediates_are_the_maps_of_the_backbone(model, indices, stages):
    x = torch.rand(1, 3, 64, 64)
    backbone = VAN(SMALL).eval()
    backbone.load_state_dict(model.state_dict())
    with torch.no_grad():
        pyramid = backbone(x)
        expected = [pyramid[stage] for stage in stages]
        last, maps = model.forward_intermediates(x, indices)
        alone = model.forward_intermediates(x, indices, intermediates_only=True)
    assert torch.equal(last, pyramid[-1])
    assert all(map(torch.equal, maps, expected)) and len(maps) == len(stages)
    assert all(map(torch.equal, alone, expected))


@pytest.mark.parametrize('indices', [[], [4], [-5]])
def test_impossible_stages_are_told(model, indices):
    with pytest.raises(ValueError, match='there are 4 stages, 0 to 3'):
        model.forward_intermediates(torch.rand(1, 3, 64, 64), indices)
    with pytest.raises(ValueError, match="allowed is 'NCHW'"):
        model.forward_intermediates(torch.rand(1, 3, 64, 64), output_fmt='NLC')


def test_the_head_is_exchanged(model):
    x = torch.rand(2, 3, 32, 32)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
    model.reset_classifier(0, '')
    assert model(x).shape == (2, 32, 1, 1)
    with pytest.raises(ValueError, match="'' without classes"):
        model.reset_classifier(3)
    with pytest.raises(ValueError, match='num_classes'):
        model.reset_classifier(-1)


def test_weights_load_with_their_head_or_not_at_all(model):
    other = VANClassifier(num_classes=5, arch=SMALL)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.head.weight, model.head.weight)
    shapes = r'head\.weight \(checkpoint \(5, 32\), model \(3, 32\)\)'
    with pytest.raises(CheckpointError, match=shapes):
        VANClassifier(num_classes=3, arch=SMALL).load_state_dict(model.state_dict())
    VANClassifier(num_classes=0, arch=SMALL).load_state_dict(model.state_dict())


def test_a_training_step_reaches_every_weight():
    model = VANClassifier(num_classes=3, arch=SMALL, drop_path_rate=0.1)
    twin = copy.deepcopy(model)
    loss = torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.arange(4) % 3)
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_out_indices_are_no_option():
    with pytest.raises(ValueError, match='out_indices is no option of a classifier'):
        VANClassifier(out_indices=(1,))
