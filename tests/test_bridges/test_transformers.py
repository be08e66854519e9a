import pickle

import pytest
import torch
from frameworks import SMALL, losses_of_two_steps, require, run_snippet

transformers = require('transformers')
bridge = pytest.importorskip('mmlska.bridges.transformers')
STAGES = ['stage1', 'stage2', 'stage3', 'stage4']


@pytest.fixture(scope='module')
def classes():
    return bridge.register()


def losses_of(model, **targets):
    """The losses of two steps, in which the backbone takes part."""

    def compute_loss():
        return model(pixel_values=torch.rand(2, 3, 128, 128), **targets).loss

    losses = losses_of_two_steps(model, compute_loss, 1e-4)
    backbone = [p for name, p in model.named_parameters() if 'vision_model' in name]
    assert backbone and all(parameter.grad is not None for parameter in backbone)
    return losses


@pytest.mark.parametrize('name', ['RTDetr', 'DFine'])
def test_a_detector_trains(classes, name):
    config = getattr(transformers, f'{name}Config')(
        backbone_config=classes.config(SMALL, out_features=STAGES[1:]),
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32],
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
        num_denoising=5,
        num_labels=3,
    )
    model = getattr(transformers, f'{name}ForObjectDetection')(config)
    label = dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    losses = losses_of(model, labels=[label, label])
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


def test_a_segmentor_trains(classes):
    config = transformers.Mask2FormerConfig(
        backbone_config=classes.config(SMALL, out_features=STAGES),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=32,
        encoder_feedforward_dim=32,
        num_queries=10,
        num_labels=3,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    masks = [torch.randint(2, (1, 128, 128)).float() for _ in range(2)]
    labels = [torch.tensor([1]), torch.tensor([2])]
    losses = losses_of(model, mask_labels=masks, class_labels=labels)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


def test_the_backbone_is_found_saved_and_pickled(classes, tmp_path):
    config = classes.config(SMALL, dict(type='LKA', kernel_size=11), out_features=STAGES[::3])
    backbone = transformers.AutoBackbone.from_config(config).eval()
    assert isinstance(backbone, classes.backbone) and backbone.channels == [8, 32]
    backbone.save_pretrained(tmp_path)
    again = classes.backbone.from_pretrained(tmp_path).eval()
    assert transformers.AutoConfig.from_pretrained(tmp_path).attention == config.attention
    third = pickle.loads(pickle.dumps(backbone))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(images).feature_maps
        for other in (again, third):
            assert all(map(torch.equal, other(images).feature_maps, maps))
    assert [tuple(out.shape) for out in maps] == [(1, 8, 16, 16), (1, 32, 2, 2)]


def test_weights_of_any_naming(classes, tmp_path):
    from mmlska.checkpoint import to_naming
    from mmlska.models import VAN

    trained = VAN(SMALL, dict(type='LKA'))
    backbone = classes.backbone(classes.config(SMALL, dict(type='LKA'), out_features=STAGES))
    backbone.vision_model.load_state_dict(to_naming(trained.state_dict(), 'transformers'))
    state = backbone.vision_model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in trained.state_dict().items())


def test_the_documents_snippet_runs():
    names = run_snippet('RTDetrConfig')
    found = names['model'].eval()(torch.rand(1, 3, 192, 192))
    assert found.pred_boxes.shape[-1] == 4
    assert any(type(part).__name__ == 'VanLskaBackbone' for part in names['model'].modules())
