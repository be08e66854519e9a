"""The configs that add a layer to a known detector or segmentor add it, and nothing else."""

import re
from itertools import product
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, DefaultScope
from test_configs import ROOT, build, every, library, read, readme_rows

from mmlska.engine.config import load_config
from mmlska.models import ECA, LSKA, ContextAggregation, PyramidAttention, SpatialContextPyramid

FOLDERS = ('eca', 'context_aggregation', 'real_time')
CONFIGS = {folder: sorted((ROOT / 'configs' / folder).glob('*.py')) for folder in FOLDERS}
STOCK = {
    'mask-rcnn_r50': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'retinanet_r50': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'rtmdet_tiny': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox_tiny': 'yolox/yolox_tiny_8xb8-300e_coco.py',
}
BLOCKS = {'r50': (3, 4, 6, 3), 'r101': (3, 4, 23, 3)}


def config(folder, stem):
    return ROOT / 'configs' / folder / f'{stem}.py'


def expected_names(folder):
    """Names of the table that a folder stands for."""
    if folder == 'eca':
        backbones = ['_'.join(pair) for pair in product(BLOCKS, ('eca', 'eca-3557'))]
        backbones = [name.replace('_', '-') for name in backbones]
        detectors = ('faster-rcnn', 'mask-rcnn', 'retinanet')
        names = {f'{d}_{b}_fpn_1x_coco' for d, b in product(detectors, backbones)}
        return names | {f'fpn_r50-{v}_4xb4-80k_ade20k-512x512' for v in ('eca', 'eca-3557')}
    if folder == 'real_time':
        detectors = ('rtmdet_tiny-{}_8xb32-300e_coco', 'yolox_tiny-{}_8xb8-300e_coco')
        return {d.format(layer) for d, layer in product(detectors, ('lska', 'eca', 'context'))}
    middles = (
        'van-lska-tiny-context_fpn',
        'van-lska-small-context_fpn',
        'r50-context_fpn',
        'r50_fpn-scp',
        'van-lska-tiny_fpn-scp',
    )
    names = {f'{d}_{m}_1x_coco' for d, m in product(('mask-rcnn', 'retinanet'), middles)}
    return names | {'fpn_van-lska-tiny-context_4xb4-80k_ade20k-512x512'}


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_tables_are_complete(folder):
    assert {path.stem for path in CONFIGS[folder]} == expected_names(folder)


def layers_of(model, kind):
    return {name: m for name, m in model.named_modules() if isinstance(m, kind)}


@every(CONFIGS['eca'])
def test_eca_is_in_every_bottleneck_with_the_kernels_in_the_name(path):
    depth = re.search(r'_(r\d+)-', path.stem)[1]
    kernels = (3, 5, 5, 7) if '-3557' in path.stem else (5, 5, 5, 7)
    layers = layers_of(build(path, read(path).model.backbone), ECA)
    assert {name: layer.kernel_size for name, layer in layers.items()} == {
        f'layer{stage}.{block}.eca': kernel_size
        for stage, (number, kernel_size) in enumerate(
            zip(BLOCKS[depth], kernels, strict=True), start=1
        )
        for block in range(number)
    }


@every([path for path in CONFIGS['eca'] if path.stem.endswith('_coco')])
def test_eca_detectors_have_the_recipe_of_the_paper(path):
    cfg = read(path)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert cfg.train_cfg.max_epochs == 12
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 500)
    assert decay.milestones == [8, 11]
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 8
    depth = re.search(r'_r(\d+)-', path.stem)[1]
    assert cfg.model.backbone.depth == int(depth)
    assert cfg.model.backbone.init_cfg.checkpoint == f'torchvision://resnet{depth}'


@every([path for path in CONFIGS['eca'] if 'ade20k' in path.stem])
def test_eca_segmentors_have_the_recipe_of_mmsegmentation(path):
    cfg = read(path)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
    (decay,) = cfg.param_scheduler
    assert (decay.type, decay.power, decay.eta_min, decay.end) == ('PolyLR', 0.9, 1e-4, 80000)
    assert cfg.train_cfg.max_iters == 80000
    assert cfg.model.neck.in_channels == [256, 512, 1024, 2048]


# Table 5 of the ECA-Net paper, millions. It leaves out the weights that do not train.
@pytest.mark.parametrize(
    ('detector', 'published'),
    [
        ('faster-rcnn', dict(r50=41.53, r101=60.52)),
        ('mask-rcnn', dict(r50=44.18, r101=63.17)),
        ('retinanet', dict(r50=37.74, r101=56.74)),
    ],
)
def test_eca_detectors_have_the_published_sizes(detector, published):
    for depth, millions in published.items():
        model = build(config('eca', f'{detector}_{depth}-eca-3557_fpn_1x_coco'))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        assert trained / 1e6 == pytest.approx(millions, abs=0.01)
        # Nine weights of ECA lie in the frozen stage; the rest is a plain ResNet's.
        assert frozen == 225344 + 3 * 3


def test_the_kernels_of_the_released_detectors_are_an_option_away():
    library('mmdet')
    cfg = load_config(
        config('eca', 'mask-rcnn_r50-eca-3557_fpn_1x_coco'),
        {
            'model.backbone.plugins.1.cfg.kernel_size': 3,
            'model.backbone.plugins.2.cfg.kernel_size': 7,
        },
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(cfg.model.backbone)
    stages = [getattr(backbone, f'layer{i}') for i in range(1, 5)]
    assert [{block.eca.kernel_size for block in stage} for stage in stages] == [{3}, {3}, {7}, {7}]


def test_a_run_without_a_network_is_an_option_away():
    library('mmdet')
    path = config('eca', 'retinanet_r50-eca_fpn_1x_coco')
    assert load_config(path).model.backbone.init_cfg.type == 'Pretrained'
    # As DictAction reads `--cfg-options model.backbone.init_cfg=None`.
    value = DictAction._parse_iterable('None')
    cfg = load_config(path, {'model.backbone.init_cfg': value})
    assert cfg.model.backbone.init_cfg is None


@every([path for path in CONFIGS['context_aggregation'] if '-context' in path.stem])
def test_context_is_in_stages_two_to_four(path):
    layers = layers_of(build(path, read(path).model.backbone), ContextAggregation)
    if 'r50' in path.stem:
        names = [
            f'layer{stage}.{block}.context_aggregation'
            for stage, number in enumerate(BLOCKS['r50'], start=1)
            for block in range(number)
            if stage > 1
        ]
        reduction = 16
    else:
        names = [f'after_stage{stage}.context_aggregation' for stage in (2, 3, 4)]
        reduction = 1
    assert list(layers) == names
    for layer in layers.values():
        assert layer.v.out_channels == layer.m.out_channels // reduction


@every([path for path in CONFIGS['context_aggregation'] if '-scp' in path.stem])
def test_the_context_pyramid_follows_the_fpn(path):
    necks = build(path, read(path).model.neck)
    assert [type(neck).__name__ for neck in necks] == ['FPN', 'SpatialContextPyramid']
    assert isinstance(necks[1], SpatialContextPyramid)
    assert necks[1].in_channels == [256] * 5
    assert [level.v.out_channels for level in necks[1].levels] == [256] * 5


@every(CONFIGS['real_time'])
def test_real_time_detectors_have_the_layer_in_the_name_on_three_levels(path):
    kind = {'lska': LSKA, 'eca': ECA, 'context': ContextAggregation}[
        re.search('_tiny-([a-z]+)_', path.stem)[1]
    ]
    neck = build(path, read(path).model.neck)[1]
    assert isinstance(neck, PyramidAttention)
    assert [type(level) for level in neck.levels] == [kind] * 3
    assert neck.in_channels == [96] * 3


def known_config(path):
    """What a config adds to: MMDetection's own config, or ours without the layer."""
    detector = '_'.join(path.stem.split('_')[:2]).split('-context')[0]
    if path.parent.name == 'real_time':
        detector = re.match('[a-z]+_tiny', path.stem)[0]
    if detector in STOCK:
        mmdet = pytest.importorskip('mmdet')
        return Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / STOCK[detector])
    return read(config('van_lska', re.sub('-(context|scp)', '', path.stem)))


def unscoped(settings):
    """Settings without the marks that mmengine leaves on those of another library."""
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(unscoped, settings))
    if not isinstance(settings, dict):
        return settings
    return {key: unscoped(value) for key, value in settings.items() if key != '_scope_'}


@every([*CONFIGS['context_aggregation'], *CONFIGS['real_time']])
def test_nothing_but_the_layer_differs_from_the_known_config(path):
    cfg, known = unscoped(read(path).to_dict()), unscoped(known_config(path).to_dict())
    model, known_model = cfg.pop('model'), known.pop('model')
    for variable in ('context_in_van', 'context_in_resnet'):
        cfg.pop(variable, None)
    model['backbone'].pop('plugins', None)
    if isinstance(model['neck'], list):
        model['neck'] = model['neck'][0]
    assert model == known_model
    hooks, known_hooks = cfg.pop('default_hooks'), known.pop('default_hooks')
    saving = cfg.pop('saving')
    checkpoint = {**known_hooks['checkpoint'], **saving.pop('checkpoint')}
    assert hooks == {**known_hooks, **cfg.pop('checks'), **saving, 'checkpoint': checkpoint}
    for variable in ('checks', 'saving'):
        known.pop(variable, None)
    assert cfg == known


def test_the_real_time_readme_counts_the_stock_detectors():
    text = (ROOT / 'configs/real_time/README.md').read_text(encoding='utf-8')
    rows = readme_rows(ROOT / 'configs/real_time')
    for name, stem in {
        'RTMDet-tiny': 'rtmdet_tiny-eca_8xb32',
        'YOLOX-tiny': 'yolox_tiny-eca_8xb8',
    }.items():
        stock = re.search(rf'{name} has ([\d.]+) M', text)[1]
        # ECA adds nine weights, less than a rounded million shows.
        assert stock == rows[f'{stem}-300e_coco'][0]


@pytest.mark.parametrize(
    ('layer', 'stem'), [('LSKA', 'lska'), ('ECA', 'eca'), ('ContextAggregation', 'context')]
)
def test_the_real_time_readme_counts_the_added_weights(layer, stem):
    text = (ROOT / 'configs/real_time/README.md').read_text(encoding='utf-8')
    stated = re.search(rf'\| \[{layer}\]\([^|]*\|[^|]*\| ([\d,]+) \|', text)[1]
    path = config('real_time', f'rtmdet_tiny-{stem}_8xb32-300e_coco')
    neck = build(path, read(path).model.neck)[1]
    assert sum(p.numel() for p in neck.parameters()) == int(stated.replace(',', ''))
