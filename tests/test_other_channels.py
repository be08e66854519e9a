"""Images of other channels, from the file on the disk to a step of training, in both libraries."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
from generated_data import innermost, make_data
from mmengine.registry import MODELS, DefaultScope
from script_runs import new_managers
from short_runs import cut_down, train
from test_configs import library

from mmlska.engine.config import load_config

pytestmark = pytest.mark.slow

RESNET = 'retinanet_r50-eca_fpn_1x_coco'
VAN_DETECTOR = 'retinanet_van-lska-tiny_fpn_1x_coco'
VAN_SEGMENTOR = 'fpn_van-lska-tiny_4xb4-80k_ade20k-512x512'
MEAN, STD = 116.0, 57.0


def set_reading(cfg, *steps):
    """Read images by these steps, and leave out what is made for colours."""
    dataset = innermost(cfg.train_dataloader.dataset)
    kept = [step for step in dataset.pipeline[1:] if step['type'] != 'PhotoMetricDistortion']
    dataset.pipeline = [dict(type='LoadImageFromFile', **steps[0]), *steps[1:], *kept]


def set_normalisation(cfg, channels):
    """Normalise where the libraries let one: their preprocessors take one or three channels."""
    settings = dict(mean=[MEAN] * channels, std=[STD] * channels)
    if channels > 1:
        pipeline = innermost(cfg.train_dataloader.dataset).pipeline
        pipeline.insert(-1, dict(type='Normalize', to_rgb=False, **settings))
        settings = dict(mean=None, std=None)
    cfg.model.data_preprocessor.update(bgr_to_rgb=False, **settings)


def write_images(folder, channels):
    """Noise of other channels in the files that are there."""
    generator = np.random.default_rng(0)
    for path in folder.rglob('*.jpg'):
        height, width = cv2.imread(str(path)).shape[:2]
        noise = generator.integers(0, 256, (height, width, channels), np.uint8)
        if channels == 4:
            # The name stays that of the annotations; readers go by what is in the file.
            path.write_bytes(cv2.imencode('.png', noise)[1].tobytes())
        elif channels > 4:
            tifffile.imwrite(str(path), noise, photometric='minisblack')


ALPHA = dict(color_type='unchanged'), dict(type='mmlska.SelectChannels', channels=(2, 1, 0, 3))
BANDS = (dict(imdecode_backend='tifffile', color_type='unchanged'),)
GREY = (dict(color_type='grayscale'),)
CASES = {
    'grey': (RESNET, 'mmlska.PretrainedBackbone', 'sum', 1, GREY),
    'alpha': (VAN_SEGMENTOR, 'Pretrained', 'zero', 4, ALPHA),
    'bands': (VAN_DETECTOR, 'Pretrained', 'repeat', 6, BANDS),
}


@pytest.mark.parametrize('case', CASES)
def test_a_step_of_training_from_weights_of_rgb_images(case, tmp_path, monkeypatch):
    name, kind, how, channels, reading = CASES[case]
    library('mmseg' if 'ade20k' in name else 'mmdet')
    monkeypatch.chdir(tmp_path)
    cfg = load_config(name)
    make_data(cfg)
    write_images(tmp_path, channels)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        trained = MODELS.build({**cfg.model.backbone, 'init_cfg': None}).state_dict()
    torch.save(trained, 'rgb.pth')

    backbone = cfg.model.backbone
    backbone.in_channels, backbone.frozen_stages = channels, -1
    backbone.init_cfg = dict(type=kind, checkpoint='rgb.pth', convert=dict(in_channels=how))
    set_reading(cfg, *reading)
    set_normalisation(cfg, channels)
    cfg.work_dir = 'work_dir'
    with new_managers():
        runner = train(cut_down(cfg, 1))
    key = next(key for key, value in trained.items() if value.dim() == 4)
    stem = runner.model.backbone.state_dict()[key]
    assert stem.shape[1] == channels
    # From the old kernels one step went, no further.
    start = {
        'sum': trained[key].sum(1),
        'zero': trained[key][:, 0],
        'repeat': trained[key][:, 0] / 2,
    }
    difference = (stem[:, 0] - start[how]).abs().max()
    assert 0 < difference < 0.1 * start[how].abs().max()
