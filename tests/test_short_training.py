"""Two iterations of shipped configs, each with its own recipe, on small data of both kinds.

Only paths, sizes and the length of the run are overridden, and the warm-up is left out: two of its
first steps would be too small to see.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.engine.config import find_config
from mmlska.registry import MODELS

pytestmark = pytest.mark.slow

# One config for each detector or segmentor and way of adding a layer, with the layer that is added.
CONFIGS = {
    'mask-rcnn_van-lska-tiny-context_fpn_1x_coco': 'ContextAggregation',
    'retinanet_r50-context_fpn_1x_coco': 'ContextAggregation',
    'mask-rcnn_r50_fpn-scp_1x_coco': 'ContextAggregation',
    'fpn_van-lska-tiny-context_4xb4-80k_ade20k-512x512': 'ContextAggregation',
    'faster-rcnn_r50-eca-3557_fpn_1x_coco': 'ECA',
    'retinanet_r50-eca_fpn_1x_coco': 'ECA',
    'fpn_r50-eca_4xb4-80k_ade20k-512x512': 'ECA',
    'rtmdet_tiny-lska_8xb32-300e_coco': 'LSKA',
    'yolox_tiny-context_8xb8-300e_coco': 'ContextAggregation',
}
SIDE = 96
BATCH = 2
ITERATIONS = 2


class Watch(Hook):
    """Keeps the losses, and the weights of the added layers from before the first iteration."""

    def __init__(self, layer):
        self.layer = MODELS.get(layer)
        self.losses = []

    def weights(self, runner):
        layers = [module for module in runner.model.modules() if isinstance(module, self.layer)]
        return torch.cat([p.detach().flatten() for layer in layers for p in layer.parameters()])

    def before_train(self, runner):
        self.before = self.weights(runner).clone()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


def shrink(settings):
    """The steps of a pipeline with all sizes of images replaced."""
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(shrink, settings))
    if not isinstance(settings, dict):
        return settings
    # Mosaics of four images have a margin of half a side, which YOLOX crops.
    small = dict.fromkeys(('scale', 'img_scale', 'crop_size', 'size'), (SIDE, SIDE))
    small['border'] = (-SIDE // 2, -SIDE // 2)
    return {key: small.get(key, shrink(value)) for key, value in settings.items()}


def innermost(dataset):
    """The data set that reads images, inside those that mix them."""
    return innermost(dataset.dataset) if 'dataset' in dataset else dataset


def detection_data(cfg, root):
    own = dict(
        data_root=f'{root}/',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
        indices=BATCH * ITERATIONS,
    )
    if root.name == 'digit_scenes':
        own['metainfo'] = dict(classes=(*'0123456789',))
    return own


def segmentation_data(cfg, root):
    if root.name == 'digit_scenes':
        folders = dict(img_path='images/train', seg_map_path='labels/train')
        return dict(data_root=str(root), data_prefix=folders, img_suffix='.png')
    return dict(data_root=str(root))


def short_run(name, root, work_dir):
    """The config with its own recipe, for two iterations over small images."""
    pytest.importorskip('mmseg' if name.startswith('fpn') else 'mmdet')
    cfg = Config.fromfile(find_config(name))
    data = segmentation_data if cfg.default_scope == 'mmseg' else detection_data
    loader = cfg.train_dataloader
    innermost(loader.dataset).merge(data(cfg, root))
    loader.dataset.pipeline = shrink(loader.dataset.pipeline)
    loader.merge(dict(batch_size=BATCH, num_workers=0, persistent_workers=False))
    for split in ('val', 'test'):
        cfg.update({f'{split}_dataloader': None, f'{split}_cfg': None, f'{split}_evaluator': None})
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
        cfg.train_cfg.merge(dict(max_iters=ITERATIONS))
    else:
        cfg.train_cfg.merge(dict(max_epochs=1))
    cfg.pop('param_scheduler')
    # No network here: the weights of ResNet and CSPNeXt stay random.
    cfg.model.backbone.pop('init_cfg', None)
    if 'roi_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = 100
        cfg.model.train_cfg.rcnn.sampler.num = 32
    cfg.default_hooks.pop('checkpoint')
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = re.sub(r'\W', '_', f'{name}_{root.name}')
    return cfg


def train(name, root, work_dir):
    torch.manual_seed(0)
    runner = Runner.from_cfg(short_run(name, root, work_dir))
    watch = Watch(CONFIGS[name])
    runner.register_hook(watch)
    runner.train()
    assert len(watch.losses) == ITERATIONS
    assert all(math.isfinite(loss) for loss in watch.losses)
    assert not torch.equal(watch.weights(runner), watch.before)


@pytest.fixture(scope='session')
def digit_scenes(tmp_path_factory) -> Path:
    pytest.importorskip('skimage')
    pytest.importorskip('sklearn')
    from mmlska.datasets import make_digit_scenes

    return make_digit_scenes(tmp_path_factory.mktemp('data') / 'digit_scenes', 8, 1)


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_on_the_digits(name, digit_scenes, tmp_path):
    train(name, digit_scenes, tmp_path)


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_on_photographs(name, shared, tmp_path):
    folder = 'ade20k_micro' if name.startswith('fpn') else 'coco_mini'
    train(name, shared / 'data' / folder, tmp_path)
