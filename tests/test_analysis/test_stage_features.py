import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from script_runs import TOOLS, run_here
from torch import nn

from mmlska.analysis import stage_features as module
from mmlska.analysis.stage_features import kept_features, normalization, pooled_maps, stage_features
from mmlska.models import VAN

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
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


def test_the_tool_measures_dimensions_and_textures(files, tmp_path):
    pytest.importorskip('mmseg')
    pytest.importorskip('sklearn')
    config = tmp_path / 'config.py'
    shutil.copy(CONFIGS / 'small_fpn.py', config)
    text = config.read_text().replace("'../../configs", f"'{CONFIGS.parents[1]}/configs")
    config.write_text(text)
    settings = {k: v for k, v in Config.fromfile(config).model.backbone.items() if k != 'type'}
    settings['norm_cfg'] = dict(type='BN')
    torch.save(VAN(**settings).state_dict(), tmp_path / 'backbone.pth')
    for part in ('train', 'val', 'test'):
        (tmp_path / 'dtd' / 'labels').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'dtd' / 'labels' / f'{part}1.txt').write_text('red/0.png\nblue/2.png\n')
    for name, file in (('red', files[0]), ('blue', files[2])):
        (tmp_path / 'dtd' / 'images' / name).mkdir(parents=True)
        shutil.copy(file, tmp_path / 'dtd' / 'images' / name)
    rng = np.random.default_rng(0)
    for shape in ('cat1', 'cat2', 'dog1'):
        for texture in ('car1', 'cup1', 'cup2'):
            (tmp_path / 'pairs').mkdir(exist_ok=True)
            pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
            cv2.imwrite(str(tmp_path / 'pairs' / f'{shape}-{texture}.png'), pixels)

    script = TOOLS / 'analysis_tools' / 'shape_texture.py'
    command = [config, 'backbone.pth', '--size', '64', '--pairs', 'pairs', '--dtd', 'dtd']
    done = run_here(script, *command, '--names', 'tiny', '--out-dir', 'out', cwd=tmp_path)
    assert '9 pictures, 9 pairs of one shape, 9 of one texture' in done.stdout
    written = json.loads((tmp_path / 'out' / 'shape_texture.json').read_text())
    stages = written['dimensions']['tiny']
    assert [stage['neurons'] for stage in stages] == [8, 16, 24, 32]
    assert all(s['shape'] + s['texture'] + s['residual'] == s['neurons'] for s in stages)
    assert written['texture_accuracy']['tiny'] == [100.0] * 4
    assert (tmp_path / 'out' / 'shape_texture.png').is_file()
    done = run_here(script, config, cwd=tmp_path, expect=2)
    assert 'pairs CONFIG CHECKPOINT' in done.stderr
