"""Two iterations of shipped configs, each with its own recipe, on small data of both kinds.

Only paths, sizes and the length of the run are overridden, and the warm-up is left out: two of its
first steps would be too small to see.
"""

from pathlib import Path

import pytest
import torch
from generated_data import innermost
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from script_runs import new_managers
from short_runs import SIDE, cut_down, train

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
ITERATIONS = 2
# Kinds of models. All configs of a kind read images in the same way, which a test tells.
KINDS = {}
for name in CONFIGS:
    KINDS.setdefault(name.split('_')[0], []).append(name)


class Watch(Hook):
    """Keeps the weights of the layers from before the first iteration."""

    def __init__(self, layer):
        self.layer = MODELS.get(layer)

    def weights(self, runner):
        layers = [module for module in runner.model.modules() if isinstance(module, self.layer)]
        return torch.cat([p.detach().flatten() for layer in layers for p in layer.parameters()])

    def before_train(self, runner):
        self.before = self.weights(runner).clone()


def set_classes(settings, number):
    """Let every head tell so many classes apart."""
    for key, value in settings.items():
        if key == 'num_classes':
            settings[key] = number
        elif isinstance(value, dict):
            set_classes(value, number)


def detection_data(cfg, root):
    own = dict(
        data_root=f'{root}/',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train/'),
    )
    if root.name == 'digit_scenes':
        own['metainfo'] = dict(classes=(*'0123456789',))
        set_classes(cfg.model, 10)
    return own


def segmentation_data(cfg, root):
    if root.name == 'digit_scenes':
        folders = dict(img_path='images/train', seg_map_path='labels/train')
        return dict(data_root=str(root), data_prefix=folders, img_suffix='.png')
    return dict(data_root=str(root))


def short_run(name, root, work_dir, iterations=ITERATIONS, workers=0):
    """The config with its own recipe, for a few iterations over small images."""
    pytest.importorskip('mmseg' if 'ade20k' in name else 'mmdet')
    cfg = Config.fromfile(find_config(name))
    data = segmentation_data if cfg.default_scope == 'mmseg' else detection_data
    innermost(cfg.train_dataloader.dataset).merge(data(cfg, root))
    cfg.work_dir = str(work_dir)
    return cut_down(cfg, iterations, workers)


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


def check(name, root, work_dir):
    watch = Watch(CONFIGS[name])
    with new_managers():
        runner = train(short_run(name, root, work_dir), watch)
    assert len(runner.losses) == ITERATIONS
    assert not torch.equal(watch.weights(runner), watch.before)


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_on_the_digits(name, scenes, tmp_path):
    check(name, scenes, tmp_path)


@pytest.mark.parametrize('kind', KINDS)
def test_all_configs_of_a_kind_read_images_in_one_way(kind):
    pytest.importorskip('mmseg' if 'ade20k' in KINDS[kind][0] else 'mmdet')
    loaders = [Config.fromfile(find_config(name)).train_dataloader for name in KINDS[kind]]
    assert all(loader.dataset == loaders[0].dataset for loader in loaders)


@pytest.mark.parametrize('kind', KINDS)
def test_trains_on_photographs(kind, shared, tmp_path):
    name = KINDS[kind][0]
    folder = 'ade20k_micro' if 'ade20k' in name else 'coco_mini'
    check(name, shared / 'data' / folder, tmp_path)


# A config whose second neck starts as the identity, and the config without it.
ADDED_NECKS = {
    'rtmdet_tiny-context_8xb32-300e_coco': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'retinanet_van-lska-tiny_fpn-scp_1x_coco': 'retinanet_van-lska-tiny_fpn_1x_coco',
}


@pytest.mark.parametrize(('name', 'known'), ADDED_NECKS.items())
def test_a_trained_detector_keeps_its_features_when_it_gets_a_context_pyramid(
    name, known, scenes, tmp_path
):
    cfg = short_run(name, scenes, tmp_path)
    mmdet = pytest.importorskip('mmdet')
    stock = Path(mmdet.__file__).parent / '.mim/configs' / known
    settings = Config.fromfile(stock if stock.is_file() else find_config(known)).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = ROOT_MODELS.build(settings)
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / 'trained.pth')
    expected = features(detector)

    cfg.load_from = str(tmp_path / 'trained.pth')
    probe = Probe()
    with new_managers():
        train(cfg, probe)
    assert all(map(torch.equal, probe.features, expected))
