import ast
import copy
import re
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from fake_batches import fake_batch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner

from mmlska.analysis.complexity import count_classifier, count_model, default_shape
from mmlska.engine import check_channels
from mmlska.layers import decompose_kernel
from mmlska.models import VAN

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [
    path
    for path in sorted((ROOT / 'configs').glob('*/*.py'))
    if not path.parent.name.startswith('_')
]
PAPER_CONFIGS = [path for path in CONFIGS if path.parent.name != 'demo']
VAN_CONFIGS = [path for path in CONFIGS if path.parent.name in ('van', 'van_lska')]
FOLDERS = sorted({path.parent for path in PAPER_CONFIGS})
SCOPES = {
    **dict.fromkeys(('detr', 'faster-rcnn', 'mask-rcnn', 'retinanet', 'rtmdet', 'yolox'), 'mmdet'),
    **dict.fromkeys(('deeplabv3', 'fpn', 'upernet'), 'mmseg'),
    **dict.fromkeys(('oriented-rcnn-le90', 'rotated-retinanet-rbox-le90'), 'mmrotate'),
}
# Libraries whose configs are bases of ours.
DETECTORS = ('mmdet', 'mmrotate')

FIELD = r'[a-z0-9]+(?:-[a-z0-9]+)*'
NAME = re.compile(rf'{FIELD}(?:_{FIELD})+')
VAN_NAME = r'van-(?:lska-(?:k(?P<kernel_size>\d+)-)?(?P<size>tiny|small|base)|(?P<arch>b[0-3]))'
COCO_NAME = re.compile(rf'(?:mask-rcnn|retinanet)_{VAN_NAME}_fpn_(?P<schedule>1x|ms-3x)_coco')
ADE20K_NAME = re.compile(
    rf'(?:fpn|upernet)_{VAN_NAME}_(?P<cards>\d+)xb(?P<batch>\d+)-(?P<schedule>\d+k)'
    r'_ade20k-(?P<height>\d+)x(?P<width>\d+)'
)
IMAGENET_NAME = re.compile(rf'{VAN_NAME}_(?P<cards>\d+)xb(?P<batch>\d+)_in1k')
ROW = re.compile(r'\| \[(\S+)\]\(\./(\S+)\.py\) \| ([\d.]+) \| ([\d.]+) \|')
KERNEL_ROW = re.compile(
    r'\| (\d+) \| (\d+) \| 1×(\d+), \3×1 \| 1×(\d+), \4×1 \| (\d+) \| (\d+) \| (\d+) \|'
)

# The recipes of the papers and of their authors' code, written down apart from the configs.
RECIPES = {
    '1x': dict(lr=1e-4, weight_decay=0.05, length=12, warm_up=1000, milestones=[8, 11]),
    'ms-3x': dict(lr=1e-4, weight_decay=0.05, length=36, warm_up=1000, milestones=[27, 33]),
    '80k': dict(lr=1e-4, weight_decay=1e-4, length=80000, power=0.9),
    '40k': dict(lr=2e-4, weight_decay=1e-4, length=40000, power=0.9),
    '160k': dict(lr=6e-5, weight_decay=0.01, length=160000, warm_up=1500, power=1.0),
    'in1k': dict(lr=1e-3, weight_decay=0.05, length=310, warm_up=5, eta_min=1e-6),
}
# Multi-scale Mask R-CNN and UperNet are shipped for the largest LSKA arch and its counterpart only.
ARCHS = {'van_lska': ('lska-tiny', 'lska-small', 'lska-base'), 'van': ('b0', 'b1', 'b2', 'b3')}
SEMANTIC_FPN = {'van_lska': '4xb4-80k', 'van': '8xb4-40k'}
TINY_KERNELS = (7, 11, 35, 53, 65)


def expected_names(folder):
    """Names of the table that a folder stands for."""
    archs = ARCHS[folder]
    if folder == 'van_lska':
        archs = (*archs, *(f'lska-k{kernel_size}-tiny' for kernel_size in TINY_KERNELS))
    largest = {'van_lska': 'lska-base', 'van': 'b2'}[folder]
    names = {
        name
        for arch in archs
        for name in (
            f'mask-rcnn_van-{arch}_fpn_1x_coco',
            f'retinanet_van-{arch}_fpn_1x_coco',
            f'fpn_van-{arch}_{SEMANTIC_FPN[folder]}_ade20k-512x512',
        )
    }
    names |= {
        f'mask-rcnn_van-{largest}_fpn_ms-3x_coco',
        f'upernet_van-{largest}_8xb2-160k_ade20k-512x512',
    }
    if folder == 'van_lska':
        names |= {f'van-{arch}_8xb128_in1k' for arch in ARCHS['van_lska']}
    return names


def every(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


def scope_of(path):
    """Library that a config is for, told by its name."""
    return SCOPES.get(path.stem.split('_')[0], 'mmpretrain')


def parse_name(path):
    for pattern in (COCO_NAME, ADE20K_NAME, IMAGENET_NAME):
        if match := pattern.fullmatch(path.stem):
            return {'schedule': 'in1k', **match.groupdict()}
    pytest.fail(f'{path.stem} fits no naming pattern')


def library(scope):
    """Skip where the library of a scope, or what its models need, is not installed."""
    pytest.importorskip(f'{scope}.models', reason=f'{scope} is not installed')


@lru_cache
def read(path):
    if scope_of(path) in DETECTORS:
        library(scope_of(path))
    return Config.fromfile(path)


def small_task(model):
    """The model's settings, with as few regions and blocks as a test needs and crops as its images.

    They cost most of the time, and no layer depends on how many of them there are.
    """
    model = copy.deepcopy(model)
    backbone = model.backbone
    if backbone.type == 'mmlska.VAN' and isinstance(backbone.get('arch'), str):
        backbone.arch = dict(VAN.arch_zoo[backbone.arch], depths=[1, 1, 1, 1])
    if backbone.type == 'ResNet':
        backbone.depth = min(backbone.depth, 50)
    if 'roi_head' in model:
        model.test_cfg.rpn.max_per_img = 20
        model.train_cfg.rpn_proposal.max_per_img = 40
        model.train_cfg.rcnn.sampler.num = 16
    if 'size' in model.get('data_preprocessor', {}):
        model.data_preprocessor.size = (64, 64)
    # YOLOX draws another size every few iterations, which a runner counts.
    model.get('data_preprocessor', {}).pop('batch_augments', None)
    return model


def build(path, settings=None):
    scope = scope_of(path)
    library(scope)
    if scope in DETECTORS:
        pytest.importorskip('mmcv.ops', reason='mmcv was built without its operators')
    torch.manual_seed(0)
    # A copy, for mmdet's DETR head writes tensors into its settings.
    settings = copy.deepcopy(settings or read(path).model)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings)


@contextmanager
def no_initial_values():
    """Build models whose weights are whatever lies in memory: drawing them takes most of the time.

    Nothing that is counted depends on them.
    """
    names = ('uniform_', 'normal_', 'trunc_normal_', 'kaiming_uniform_', 'kaiming_normal_')
    with patch.multiple('torch.nn.init', **dict.fromkeys(names, lambda tensor, *_, **__: tensor)):
        yield


def batch_for(path, model):
    """Two images of 64 x 64 with annotations."""
    scope = scope_of(path)
    if scope == 'mmpretrain':
        return fake_batch(scope, model.head.num_classes)
    if scope == 'mmseg':
        return fake_batch(scope, model.decode_head.num_classes)
    has_regions = hasattr(model, 'roi_head')
    head = model.roi_head.bbox_head if has_regions else model.bbox_head
    return fake_batch(scope, head.num_classes, with_mask=has_regions and scope == 'mmdet')


def readme_rows(folder):
    """Parameters in millions and multiply-adds in billions by config, as a README states them."""
    text = (folder / 'README.md').read_text(encoding='utf-8')
    rows = ROW.findall(text)
    assert all(name == link for name, link, _, _ in rows)
    return {name: (params, macs) for name, _, params, macs in rows}


@pytest.fixture(scope='session')
def index():
    load_model_index = pytest.importorskip('modelindex.load_model_index')
    index = load_model_index.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    return index


@pytest.mark.parametrize('folder', sorted(ARCHS))
def test_the_papers_tables_are_complete(folder):
    assert {path.stem for path in VAN_CONFIGS if path.parent.name == folder} == expected_names(
        folder
    )


@every(CONFIGS)
def test_name_is_made_of_hyphenated_fields(path):
    assert NAME.fullmatch(path.stem)


@every(CONFIGS)
def test_config_reads_anywhere_and_survives_a_dump(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = read(path)
    assert cfg.default_scope == scope_of(path)
    assert 'custom_imports' not in cfg
    assert cfg.get('load_from') is None
    cfg.dump('dumped.py')
    assert Config.fromfile('dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_config_reads_by_a_relative_path(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = min(folder.glob('*.py'))
    expected = read(path).to_dict()
    assert Config.fromfile(str(path.relative_to(ROOT))).to_dict() == expected


@every(CONFIGS)
def test_model_trains_a_step_and_predicts(path):
    model = build(path, small_task(read(path).model))
    check_channels(model)
    batch = batch_for(path, model)

    model.train()
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    # DistributedDataParallel stops at a parameter that reaches no loss.
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    assert not [name for name, weight in trained.items() if weight.grad is None]

    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch, False), mode='predict')
    assert len(results) == 2
    for result in results:
        if scope_of(path) == 'mmseg':
            assert result.pred_sem_seg.data.shape == (1, 64, 64)
            assert torch.isfinite(result.seg_logits.data).all()
        elif scope_of(path) in DETECTORS:
            # Turned boxes have an angle.
            sides = 5 if scope_of(path) == 'mmrotate' else 4
            assert result.pred_instances.bboxes.shape[1:] == (sides,)
            assert torch.isfinite(result.pred_instances.scores).all()
        else:
            assert result.pred_score.sum() == pytest.approx(1, abs=1e-4)


@every(VAN_CONFIGS)
def test_backbone_is_the_one_in_the_name(path):
    name = parse_name(path)
    kernel_size = int(name['kernel_size'] or 23)
    settings = dict(read(path).model.backbone)
    assert settings.pop('type') == 'mmlska.VAN'
    with no_initial_values(), torch.device('meta'):
        backbone = VAN(**settings)
        reference = VAN(
            name['arch'] or name['size'],
            attention=dict(type='LKA' if name['arch'] else 'LSKA', kernel_size=kernel_size),
        )
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    assert shapes == {key: value.shape for key, value in reference.state_dict().items()}
    # Kernels and dilations say how far the gradient of one output pixel reaches.
    side = 2 * kernel_size + 1
    x = torch.rand(1, backbone.embed_dims[0], side, side, requires_grad=True)
    gate = backbone.blocks1[0].attn.spatial_gating_unit.to_empty(device='cpu')
    for weight in gate.parameters():
        torch.nn.init.ones_(weight)
    gate(x)[..., side // 2, side // 2].sum().backward()
    assert int(x.grad.abs().sum((0, 1)).any(0).sum()) == kernel_size


@every(VAN_CONFIGS)
def test_recipe_is_the_published_one(path):
    cfg, name = read(path), parse_name(path)
    recipe = RECIPES[name['schedule']]
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.optim_wrapper.get('clip_grad') is None
    assert optimizer.type == 'AdamW'
    assert optimizer.lr == recipe['lr']
    assert optimizer.weight_decay == recipe['weight_decay']
    assert tuple(optimizer.get('betas', (0.9, 0.999))) == (0.9, 0.999)

    length = cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters
    assert length == recipe['length']
    *warm_up, decay = cfg.param_scheduler
    assert [scheduler.type for scheduler in warm_up] == ['LinearLR'] * ('warm_up' in recipe)
    assert all(scheduler.end == recipe['warm_up'] for scheduler in warm_up)
    assert decay.end == {'in1k': 300}.get(name['schedule'], length)
    for key in ('milestones', 'power', 'eta_min'):
        if key in recipe:
            assert decay[key] == recipe[key]
    if decay.type == 'PolyLR':
        assert decay.eta_min == 0
        assert decay.begin == recipe.get('warm_up', 0)


@every(VAN_CONFIGS)
def test_batch_and_schedule_are_those_in_the_name(path):
    cfg, name = read(path), parse_name(path)
    cards, batch = int(name.get('cards') or 8), int(name.get('batch') or 2)
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=cards * batch)
    if name['schedule'].endswith('k') and name['schedule'] != 'in1k':
        iterations = int(name['schedule'][:-1]) * 1000
        assert cfg.train_cfg.max_iters == iterations
        assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
        assert iterations % cfg.train_cfg.val_interval == 0
    if 'height' in name:
        crop = (int(name['height']), int(name['width']))
        assert cfg.model.data_preprocessor.size == crop
        assert cfg.train_pipeline[3]['crop_size'] == crop


@every(VAN_CONFIGS)
def test_drop_path_is_the_published_one(path):
    name = parse_name(path)
    rate = 0.1
    if name['schedule'] == '40k':
        rate = 0.3 if name['arch'] == 'b3' else 0.2
    assert read(path).model.backbone.drop_path_rate == rate


@pytest.mark.parametrize(
    ('stem', 'decays'),
    [
        ('retinanet_van-lska-tiny_fpn_1x_coco', {0.05}),
        ('fpn_van-lska-tiny_4xb4-80k_ade20k-512x512', {1e-4}),
        ('upernet_van-lska-base_8xb2-160k_ade20k-512x512', {0.01, 0.0}),
    ],
)
def test_weight_decay_reaches_what_the_recipe_says(stem, decays):
    path = ROOT / 'configs' / 'van_lska' / f'{stem}.py'
    model, settings = build(path), read(path).optim_wrapper
    with DefaultScope.overwrite_default_scope(scope_of(path)):
        optimizer = Runner.build_optim_wrapper(RunnerWith(model), settings).optimizer
    decay_of = {
        id(weight): group['weight_decay']
        for group in optimizer.param_groups
        for weight in group['params']
    }
    assert set(decay_of.values()) == decays
    for name, weight in model.backbone.named_parameters():
        exempt = 0.0 in decays and re.search(r'norm\d?\.', name)
        assert decay_of[id(weight)] == (0.0 if exempt else max(decays))


class RunnerWith:
    """As much of a runner as it takes to build an optimizer."""

    def __init__(self, model):
        self.model = model


def test_pretrained_weights_come_by_option(tmp_path):
    path = ROOT / 'configs' / 'van' / 'fpn_van-b0_8xb4-40k_ade20k-512x512.py'
    weights = VAN('b0', attention=dict(type='LKA')).state_dict()
    torch.save(weights, tmp_path / 'weights.pth')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {
            'model.backbone.init_cfg.type': 'Pretrained',
            'model.backbone.init_cfg.checkpoint': str(tmp_path / 'weights.pth'),
        }
    )
    library('mmseg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    assert all(torch.equal(model.backbone.state_dict()[key], weights[key]) for key in weights)


@lru_cache
def first_sample(settings):
    """The first image of a dataset of mmseg: most folders have the same pipelines."""
    from mmseg.registry import DATASETS

    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(ast.literal_eval(settings))[0]


@pytest.mark.parametrize('split', ['training', 'validation'])
@pytest.mark.parametrize(
    'folder',
    [folder for folder in FOLDERS if any(folder.glob('*ade20k*'))],
    ids=lambda folder: folder.name,
)
def test_ade20k_pipelines_read_real_images(folder, split, shared):
    library('mmseg')
    path = next(path for path in CONFIGS if path.parent == folder and 'ade20k' in path.stem)
    cfg = read(path)
    loader = cfg.train_dataloader if split == 'training' else cfg.val_dataloader
    settings = dict(loader.dataset.to_dict(), data_root=str(shared / 'data' / 'ade20k_micro'))
    sample = first_sample(repr(settings))
    labels = sample['data_samples'].gt_sem_seg.data
    assert labels.unique().numel() > 1
    assert set(labels.unique().tolist()) <= {*range(150), 255}
    height, width = sample['inputs'].shape[1:]
    if split == 'training':
        assert max(height, width) <= 512 and labels.shape == (1, height, width)
    else:
        assert min(height, width) >= 512 and labels.shape[1:] == sample['data_samples'].ori_shape
    if split == 'validation' and folder.name == 'van':
        assert height % 32 == width % 32 == 0


@pytest.mark.parametrize(('folder', 'divisor'), [('van', 32), ('van_lska', 1)])
def test_tta_pipeline_gives_six_scales_mirrored(folder, divisor, shared):
    library('mmseg')
    cfg = read(next((ROOT / 'configs' / folder).glob('upernet_*.py')))
    image = next((shared / 'data/ade20k_micro/images/validation').glob('*.jpg'))
    labels = shared / 'data/ade20k_micro/annotations/validation' / f'{image.stem}.png'
    data = dict(
        img_path=str(image), seg_map_path=str(labels), seg_fields=[], reduce_zero_label=True
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        for settings in cfg.tta_pipeline:
            data = TRANSFORMS.build(settings)(data)
    short_sides = [min(view.shape[1:]) for view in data['inputs']]
    assert short_sides == [side for side in (256, 384, 512, 640, 768, 896) for _ in range(2)]
    assert all(side % divisor == 0 for view in data['inputs'] for side in view.shape[1:])
    assert [sample.flip for sample in data['data_samples']] == [False, True] * 6


@pytest.mark.parametrize('multi_scale', [False, True])
def test_coco_pipelines_read_real_images(multi_scale, shared):
    library('mmdet')
    path = next(p for p in VAN_CONFIGS if 'base' in p.stem and ('ms-3x' in p.stem) == multi_scale)
    dataset = read(
        path if multi_scale else path.with_name('mask-rcnn_van-lska-base_fpn_1x_coco.py')
    ).train_dataloader.dataset
    settings = dict(
        dataset,
        data_root=str(shared / 'data' / 'coco_mini'),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train'),
    )
    from mmdet.registry import DATASETS

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(settings)
        sizes = [sorted(dataset[i]['inputs'].shape[1:]) for i in range(8)]
    assert all(short <= 800 and long <= 1333 for short, long in sizes)
    # A side is scaled to exactly 800 or 1333, unless the scale itself is drawn.
    assert all(short == 800 or long == 1333 for short, long in sizes) != multi_scale


@every(PAPER_CONFIGS)
def test_readme_and_metafile_state_what_is_counted(path, index):
    cfg = read(path)
    if scope_of(path) == 'mmpretrain':
        backbone = {key: value for key, value in cfg.model.backbone.items() if key != 'type'}
        with no_initial_values(), torch.device('meta'):
            backbone = VAN(**backbone)
        part = count_classifier(backbone, default_shape(cfg))
        params, macs = part.params, part.macs
    else:
        with no_initial_values():
            model = build(path).eval().to('meta')
        with DefaultScope.overwrite_default_scope(scope_of(path)):
            parts = count_model(model, default_shape(cfg))
        params = sum(part.params for part in parts)
        macs = sum(part.macs for part in parts if part.macs)
    stated = readme_rows(path.parent)[path.stem]
    assert stated[0] == f'{params / 1e6:.3f}'
    assert stated[1] == (f'{macs / 1e9:.1f}' if macs > 1e10 else f'{macs / 1e9:.2f}')
    entry = next(model for model in index.models if model.name == path.stem)
    assert entry.metadata.parameters == params
    assert entry.metadata.flops == macs


# Tables 9 to 12 of the VAN paper, in millions and as rounded there.
@pytest.mark.parametrize(
    ('pattern', 'published'),
    [
        ('retinanet_van-{}_fpn_1x_coco', dict(b0=13.4, b1=23.6, b2=36.3, b3=54.5)),
        ('mask-rcnn_van-{}_fpn_1x_coco', dict(b0=23.9, b1=33.5, b2=46.2, b3=64.4)),
        ('fpn_van-{}_8xb4-40k_ade20k-512x512', dict(b0=8, b1=18, b2=30, b3=49)),
        ('upernet_van-{}_8xb2-160k_ade20k-512x512', dict(b2=57)),
    ],
)
def test_sizes_are_the_published_ones(pattern, published):
    rows = readme_rows(ROOT / 'configs' / 'van')
    for arch, millions in published.items():
        digits = 1 if isinstance(millions, float) else 0
        assert round(float(rows[pattern.format(arch)][0]), digits) == millions


def test_readme_states_the_law_of_kernel_sizes():
    text = (ROOT / 'configs' / 'van_lska' / 'README.md').read_text(encoding='utf-8')
    rows = KERNEL_ROW.findall(text)
    assert [int(row[0]) for row in rows] == sorted((*TINY_KERNELS, 23))
    for row in rows:
        kernel_size, dilation, local, dilated, lska, lka, full = map(int, row)
        assert decompose_kernel(kernel_size) == (local, dilated, dilation)
        assert (lska, lka, full) == (
            2 * (local + dilated),
            local**2 + dilated**2,
            kernel_size**2,
        )


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_readme_lists_every_config_and_no_other(folder):
    assert set(readme_rows(folder)) == {path.stem for path in folder.glob('*.py')}


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_readme_claims_no_run_of_ours(folder):
    lines = (folder / 'README.md').read_text(encoding='utf-8').splitlines()
    rows = [line for line in lines if ROW.match(line)]
    assert rows and all(line.endswith('| not trained here |') for line in rows)


def test_model_index_imports_every_metafile():
    imported = yaml.safe_load((ROOT / 'model-index.yml').read_text(encoding='utf-8'))['Import']
    present = [str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/metafile.yml')]
    assert sorted(imported) == sorted(present)


def test_model_index_is_valid_and_covers_every_config(index):
    assert index.check(silent=True) == []
    assert [model.name for model in index.models] == [
        Path(model.config).stem for model in index.models
    ]
    listed = [ROOT / model.config for model in index.models]
    assert len(listed) == len(set(listed))
    assert set(PAPER_CONFIGS) <= set(listed) <= set(CONFIGS)


def test_model_index_claims_no_weights_and_names_the_source_of_results(index):
    for model in index.models:
        assert model.weights is None
        if model.results:
            source = model.metadata.data['Results Source']
            assert re.match('quoted from .*; not trained here|measured here, ', source)
