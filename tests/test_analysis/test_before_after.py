"""A model before and after training: which weights are which, and what is looked at."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmlska.analysis.attention_maps import Scene, record_gates
from mmlska.analysis.before_after import BeforeAfter, content_of, untrained, without_weights
from mmlska.analysis.receptive_field import effective_receptive_field
from mmlska.engine.config import load_config

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'small_fpn.py'
LAYERS = [f'backbone.blocks{stage}.0.attn.spatial_gating_unit' for stage in (1, 2, 3, 4)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A checkpoint of weights that no seed gives, and an image of noise."""
    pytest.importorskip('mmseg.models')
    folder = tmp_path_factory.mktemp('before_after')
    cfg = load_config(CONFIG)
    cfg.model.backbone.norm_cfg.type = 'BN'
    cfg.model.decode_head.norm_cfg.type = 'BN'
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: value + 0.1 * torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in model.state_dict().items()
    }
    torch.save(dict(state_dict=weights), folder / 'trained.pth')
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    cv2.imwrite(str(folder / 'noise.png'), noise)
    return folder


@pytest.fixture(scope='module')
def pair(folder):
    return BeforeAfter(CONFIG, str(folder / 'trained.pth'), device='cpu')


def test_after_are_the_weights_of_the_file_and_before_those_of_a_seed(folder, pair):
    file = torch.load(folder / 'trained.pth', weights_only=True)['state_dict']
    state = torch.get_rng_state()
    again = untrained(pair.after, load_config(CONFIG))
    assert torch.equal(state, torch.get_rng_state())
    before, same = pair.before.model.state_dict(), again.model.state_dict()
    for name, weight in pair.after.model.state_dict().items():
        assert torch.equal(weight, file[name]), name
        assert torch.equal(before[name], same[name]), name
    assert not torch.equal(before['backbone.patch_embed1.projection.weight'],
                           file['backbone.patch_embed1.projection.weight'])  # fmt: skip
    assert not pair.before.model.training


def test_it_tells_what_can_be_looked_at(pair):
    assert pair.stages == 4
    assert pair.layers == LAYERS


def test_fields_and_gates_are_those_of_the_instruments(folder, pair):
    path = folder / 'noise.png'
    found = pair.look(path, 1, LAYERS[2])
    for findings, predictor in zip(found, (pair.before, pair.after), strict=True):
        scene, model = Scene(predictor, path), predictor.model
        field = findings.field
        expected = effective_receptive_field(model.backbone, [content_of(scene)] * 4, 1)
        np.testing.assert_allclose(field.contribution, expected)
        assert field.contribution.shape == (48, 64)
        assert (field.stage, field.stride) == (1, 8)
        gates = record_gates(model, lambda m=model, s=scene: m.extract_feat(s.inputs))
        assert findings.gate.title.startswith('blocks3.0\nLSKA')
        np.testing.assert_allclose(
            findings.gate.values, scene.crop(gates[2].values[0].abs().mean(0))
        )
        assert findings.prediction.pred_sem_seg.data.shape == (1, 48, 64)
    assert found[0].field.box == found[1].field.box
    assert all(parameter.requires_grad for parameter in pair.after.model.parameters())


def test_without_a_layer_there_is_no_gate(folder, pair):
    before, after = pair.look(folder / 'noise.png', 3, None)
    assert before.gate is after.gate is None


def test_wrong_choices_are_told(folder, pair):
    with pytest.raises(ValueError, match='stage 4 is out of range'):
        pair.look(folder / 'noise.png', 4, None)
    with pytest.raises(
        ValueError, match="no gate comes out of 'neck': there are those of backbone"
    ):
        pair.look(folder / 'noise.png', 0, 'neck')


def test_random_weights_fetch_nothing():
    named = dict(type='Pretrained', checkpoint='https://example.invalid/weights.pth')
    settings = dict(
        pretrained='https://example.invalid/weights.pth',
        init_cfg=dict(type='Normal', std=0.1),
        backbone=dict(type='A', init_cfg=named, inner=dict(init_cfg=dict(named))),
    )
    cleared = without_weights(settings)
    assert 'invalid' not in str(cleared)
    assert cleared['init_cfg'] == dict(type='Normal', std=0.1)
    assert settings['backbone']['init_cfg'] == named
