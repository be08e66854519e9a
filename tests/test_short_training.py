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
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmlska.engine.config import find_config
from mmlska.registry import MODELS
from mmlska.shipped import shipped_configs

pytestmark = pytest.mark.slow

# The layer or backbone that the configs of a folder add, by a part of their names.
FOLDERS = {
    'container': {'container': 'ContainerLight'},
    'context_aggregation': {'context': 'ContextAggregation', 'scp': 'ContextAggregation'},
    'eca': {'eca': 'ECA'},
    'ghostnetv2': {'ghostnetv2': 'GhostNetV2'},
    'real_time': {'context': 'ContextAggregation', 'eca': 'ECA', 'lska': 'LSKA'},
}
CONFIGS = {
    name: next(layer for part, layer in FOLDERS[path.parent.name].items() if part in name)
    for name, path in shipped_configs().items()
    if path.parent.name in FOLDERS
}
SIDE = 96
BATCH = 2
ITERATIONS = 2


class Watch(Hook):
    """Keeps the losses, and the weights of the layers from before the first iteration."""

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
    small['scales'] = [(SIDE, SIDE)]
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
    pytest.importorskip('mmseg' if 'ade20k' in name else 'mmdet')
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
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = re.sub(r'\W', '_', f'{name}_{root.name}')
    return cfg


class Probe(Hook):
    """Keeps what backbone and neck make of an image before the first iteration."""

    def before_train(self, runner):
        self.features = features(runner.model)


def features(model):
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        maps = model.neck(model.backbone(torch.randn(1, 3, SIDE, SIDE)))
    model.train()
    return maps


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
    folder = 'ade20k_micro' if 'ade20k' in name else 'coco_mini'
    train(name, shared / 'data' / folder, tmp_path)


# A config whose second neck starts as the identity, and the config without it.
ADDED_NECKS = {
    'rtmdet_tiny-context_8xb32-300e_coco': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'retinanet_van-lska-tiny_fpn-scp_1x_coco': 'retinanet_van-lska-tiny_fpn_1x_coco',
}


@pytest.mark.parametrize(('name', 'known'), ADDED_NECKS.items())
def test_a_trained_detector_keeps_its_features_when_it_gets_a_context_pyramid(
    name, known, digit_scenes, tmp_path
):
    cfg = short_run(name, digit_scenes, tmp_path)
    mmdet = pytest.importorskip('mmdet')
    stock = Path(mmdet.__file__).parent / '.mim/configs' / known
    settings = Config.fromfile(stock if stock.is_file() else find_config(known)).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = ROOT_MODELS.build(settings)
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / 'trained.pth')
    expected = features(detector)

    cfg.load_from = str(tmp_path / 'trained.pth')
    cfg.experiment_name = f'{cfg.experiment_name}_load_from'
    runner = Runner.from_cfg(cfg)
    probe = Probe()
    runner.register_hook(probe)
    runner.train()
    assert all(map(torch.equal, probe.features, expected))
