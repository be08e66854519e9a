import pytest
import torch
from frameworks import SMALL, losses_of_two_steps, require, run_snippet

smp = require('segmentation_models_pytorch')
bridge = pytest.importorskip('mmlska.bridges.segmentation_models_pytorch')

FITTING = ['Unet', 'UnetPlusPlus', 'FPN', 'PSPNet', 'Linknet', 'MAnet', 'Segformer', 'UPerNet']
# They want a last stage of stride 8 or 16.
DILATED = ['DeepLabV3', 'DeepLabV3Plus', 'PAN']


@pytest.fixture(scope='module', autouse=True)
def registered():
    names = bridge.register()
    smp.encoders.encoders['van_lska_tiny']['params']['arch'] = SMALL
    return names


@pytest.mark.parametrize('name', FITTING)
def test_a_model_trains(name):
    model = getattr(smp, name)('van_lska_tiny', encoder_weights=None, classes=3, in_channels=4)
    images, labels = torch.rand(2, 4, 64, 96), torch.randint(3, (2, 64, 96))
    losses = losses_of_two_steps(
        model, lambda: torch.nn.functional.cross_entropy(model(images), labels)
    )
    assert losses[1] != losses[0]
    assert all(weight.grad is not None for weight in model.encoder.parameters())


@pytest.mark.parametrize('name', DILATED)
def test_what_needs_dilation_is_refused(name):
    with pytest.raises(ValueError, match='cannot be dilated, allowed is 32'):
        getattr(smp, name)('van_lska_tiny', encoder_weights=None)


@pytest.mark.parametrize('depth', [2, 3, 4, 5])
def test_depths(depth):
    encoder = smp.encoders.get_encoder('van_lska_tiny', depth=depth).eval()
    maps = encoder(torch.rand(1, 3, 64, 64))
    assert (
        [out.shape[1] for out in maps] == encoder.out_channels == [3, 0, 8, 16, 24, 32][: depth + 1]
    )
    assert [64 // out.shape[2] for out in maps] == [1, 2, 4, 8, 16, 32][: depth + 1]


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match='depth=1 is not possible'):
        smp.encoders.get_encoder('van_lska_tiny', depth=1)


def test_the_documents_snippet_loads_the_weights(tmp_path, monkeypatch):
    from mmlska.checkpoint import to_naming
    from mmlska.models import VAN

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(smp.encoders.encoders['van_lska_tiny']['params'], 'arch', 'tiny')
    trained = VAN('tiny').state_dict()
    torch.save(to_naming(trained, 'official'), 'van_lska_tiny.pth')
    state = run_snippet('segmentation_models_pytorch')['model'].encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in trained.items())
