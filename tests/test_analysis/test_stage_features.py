import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmlska.analysis import stage_features as module
from mmlska.analysis.stage_features import kept_features, normalization, pooled_maps, stage_features
from mmlska.models import VAN

MEAN, STD = [10.0, 20.0, 30.0], [1.0, 2.0, 4.0]


def config(**preprocessor):
    settings = dict(mean=MEAN, std=STD, bgr_to_rgb=True, **preprocessor)
    backbone = dict(
        type='mmlska.VAN',
        arch=dict(embed_dims=[4, 8], depths=[1, 1], ffn_ratios=[2, 2]),
        attention=dict(type='LSKA', kernel_size=7),
        out_indices=(0, 1),
    )
    return Config(dict(model=dict(data_preprocessor=settings, backbone=backbone)))


@pytest.fixture
def files(tmp_path):
    """Images of one colour each, blue, green and red."""
    paths = []
    for i, colour in enumerate([(0, 0, 100), (50, 60, 70), (255, 0, 0)]):
        paths.append(tmp_path / f'{i}.png')
        cv2.imwrite(str(paths[-1]), np.full((20, 30, 3), colour, np.uint8))
    return paths


class Identity(nn.Module):
    """Its maps are the image and twice the image."""

    def forward(self, x):
        return x, 2 * x


@pytest.mark.parametrize('is_rgb', [True, False])
def test_a_backbone_gets_images_as_its_config_normalises_them(files, is_rgb):
    cfg = config()
    cfg.model.data_preprocessor.bgr_to_rgb = is_rgb
    first, second = stage_features(Identity(), cfg, files, size=16)
    colours = np.array([(100, 0, 0), (70, 60, 50), (0, 0, 255)])[:, :: 1 if is_rgb else -1]
    assert first == pytest.approx((colours - np.array(MEAN)) / STD, abs=1e-4)
    assert second == pytest.approx(2 * first)


def test_the_preprocessor_is_found_where_a_config_has_it():
    inner = dict(mean=[1.0], std=[2.0])
    assert normalization(Config(dict(data_preprocessor=dict(inner, to_rgb=True))))[2]
    nested = Config(dict(model=dict(data_preprocessor=dict(type='Multi', data_preprocessor=inner))))
    mean, std, is_rgb = normalization(nested)
    assert (mean.tolist(), std.tolist(), is_rgb) == ([1], [2], False)
    mean, std, _ = normalization(Config(dict(model=dict())))
    assert (mean.tolist(), std.tolist()) == ([0] * 3, [1] * 3)


def test_maps_are_averaged_and_vectors_stay():
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    vector = torch.ones(1, 5)
    found = pooled_maps((maps, vector))
    assert found[0].tolist() == [[5.5, 17.5]] and found[1] is vector
    assert len(pooled_maps(maps)) == 1
    with pytest.raises(TypeError, match='dict'):
        pooled_maps(dict(a=1))


def test_other_channels_are_told(files):
    cfg = config()
    cfg.model.data_preprocessor.update(mean=[0.0] * 4, std=[1.0] * 4)
    with pytest.raises(ValueError, match='4 channels'):
        stage_features(Identity(), cfg, files)
    with pytest.raises(ValueError, match='at least one image'):
        stage_features(Identity(), config(), [])


def test_features_are_computed_once_for_the_same_weights(files, tmp_path, monkeypatch):
    cfg, weights = config(), tmp_path / 'weights.pth'
    settings = {k: v for k, v in cfg.model.backbone.items() if k != 'type'}
    torch.manual_seed(0)
    torch.save(VAN(**settings).state_dict(), weights)
    first = kept_features(cfg, str(weights), files, tmp_path / 'kept', size=32)
    assert [stage.shape for stage in first] == [(3, 4), (3, 8)]
    assert np.ptp(first[1], axis=0).max() > 0

    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return stage_features(*arguments)

    monkeypatch.setattr(module, 'stage_features', counted)
    again = kept_features(cfg, str(weights), files, tmp_path / 'kept', size=32)
    assert not calls and all(map(np.array_equal, first, again))
    torch.manual_seed(1)
    torch.save(VAN(**settings).state_dict(), weights)
    other = kept_features(cfg, str(weights), files, tmp_path / 'kept', size=32)
    assert len(calls) == 1 and not np.array_equal(first[1], other[1])
