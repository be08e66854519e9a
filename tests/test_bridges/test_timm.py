import pytest
import torch
from frameworks import losses_of_two_steps, require, run_snippet

timm = require('timm')
bridge = pytest.importorskip('mmlska.bridges.timm')


@pytest.fixture(scope='module', autouse=True)
def registered():
    return bridge.register()


def test_timm_knows_the_models(registered):
    assert set(registered) <= set(timm.list_models('van_*'))
    assert timm.is_model_pretrained('van_b0') and not timm.is_model_pretrained('van_lska_tiny')
    assert bridge.register() == registered


def test_a_classifier_trains():
    model = timm.create_model('van_lska_tiny', num_classes=7, in_chans=4, drop_path_rate=0.1)
    images, labels = torch.rand(4, 4, 64, 64), torch.arange(4)
    losses = losses_of_two_steps(
        model, lambda: torch.nn.functional.cross_entropy(model(images), labels)
    )
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[1] != losses[0]
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model(images).shape == (4, 3)


def test_features_only():
    whole = timm.create_model('van_b0').eval()
    model = timm.create_model('van_b0', features_only=True, out_indices=(1, 3)).eval()
    model.load_state_dict({f'model.{key}': value for key, value in whole.state_dict().items()
                           if not key.startswith('head.')}, strict=False)  # fmt: skip
    assert model.feature_info.channels() == [64, 256]
    assert model.feature_info.reduction() == [8, 32]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps = model(images)
        assert torch.equal(maps[-1], whole.forward_features(images))
    assert [tuple(out.shape) for out in maps] == [(1, 64, 8, 12), (1, 256, 2, 3)]


def test_options_of_our_own():
    model = timm.create_model('van_lska_tiny', attention=dict(type='ECA'))
    assert type(model.blocks1[0].attn.spatial_gating_unit).__name__ == 'ECA'
    with pytest.raises(ValueError, match='Nearest legal sizes'):
        timm.create_model('van_lska_tiny', attention=dict(type='LSKA', kernel_size=22))


def test_the_documents_snippet_runs():
    names = run_snippet('timm')
    assert names['model'](torch.rand(1, 3, 64, 64)).shape == (1, 10)
    gate = names['model'].blocks1[0].attn.spatial_gating_unit
    assert gate.conv_spatial_h.kernel_size == (1, 11)  # of k = 35
    assert names['pyramid'].feature_info.channels() == [128, 320, 512]
