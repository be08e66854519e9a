"""The configs of GhostNetV2 and CONTAINER: the model in the name, the recipe and the README."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from test_configs import ROOT, build, every, library, read

from mmlska.analysis.complexity import count_classifier, count_macs, count_params, meta_input
from mmlska.models import ContainerLight, GhostNetV2

FOLDERS = {name: ROOT / 'configs' / name for name in ('ghostnetv2', 'container')}
CONFIGS = {name: sorted(folder.glob('*.py')) for name, folder in FOLDERS.items()}
NAMES = {
    'ghostnetv2': {
        *(f'retinanet_ghostnetv2-{width}_fpn_1x_coco' for width in (100, 130, 160)),
        'fpn_ghostnetv2-100_4xb4-80k_ade20k-512x512',
        'deeplabv3_ghostnetv2-100-d16_4xb4-80k_ade20k-512x512',
    },
    'container': {
        'retinanet_container-light_fpn_1x_coco',
        'mask-rcnn_container-light_fpn_1x_coco',
        'detr_container-light_8xb2-150e_coco',
        'fpn_container-light_4xb4-80k_ade20k-512x512',
    },
}


def config(folder, start):
    (path,) = [path for path in CONFIGS[folder] if path.stem.startswith(start)]
    return path


def stock_config(name):
    mmdet = pytest.importorskip('mmdet')
    return Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / name).to_dict()


def without_scope(settings):
    """What was inherited from another library, without the notes of where it came from."""
    if isinstance(settings, dict):
        return {key: without_scope(value) for key, value in settings.items() if key != '_scope_'}
    return [without_scope(value) for value in settings] if isinstance(settings, list) else settings


def readme(folder):
    return (FOLDERS[folder] / 'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_tables_are_complete(folder):
    assert {path.stem for path in CONFIGS[folder]} == NAMES[folder]


@every(CONFIGS['ghostnetv2'])
def test_ghostnetv2_is_the_one_in_the_name(path):
    backbone = build(path).backbone
    width, output_stride = re.search(r'ghostnetv2-(\d+)(?:-d(\d+))?_', path.stem).groups()
    assert type(backbone) is GhostNetV2
    reference = GhostNetV2(int(width) / 100, output_stride=int(output_stride or 32)).eval()
    reference.load_state_dict(backbone.state_dict())
    x = torch.rand(1, 3, 64, 96)
    outs = backbone.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(outs, reference(x), strict=True))
    stride = int(output_stride or 32)
    assert outs[-1].shape[2:] == (64 // stride, 96 // stride)


@every(CONFIGS['container'])
def test_container_is_the_light_one(path):
    backbone = build(path).backbone
    assert type(backbone) is ContainerLight
    assert backbone.arch_settings == dict(
        embed_dims=[64, 128, 320, 512],
        depths=[3, 4, 8, 3],
        ffn_ratios=[8, 8, 4, 4],
        num_heads=[0, 0, 0, 16],
    )
    assert backbone.blocks4[-1].drop_path.drop_prob == pytest.approx(0.1)
    assert backbone.out_indices == ((3,) if path.stem.startswith('detr') else (0, 1, 2, 3))


@every([path for path in CONFIGS['ghostnetv2'] if path.stem.startswith('retinanet')])
def test_ghostnetv2_detectors_have_the_recipe_of_mmdetection(path):
    library('mmdet')
    cfg = read(path)
    stock = stock_config('retinanet/retinanet_r50_fpn_1x_coco.py')
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader'):
        assert without_scope(cfg[key]) == stock[key], key
    assert cfg.auto_scale_lr.base_batch_size == 16


def test_detr_has_the_recipe_of_mmdetection():
    library('mmdet')
    cfg = without_scope(read(config('container', 'detr')).to_dict())
    stock = stock_config('detr/detr_r50_8xb2-150e_coco.py')
    saving, hooks = cfg.pop('saving'), stock['default_hooks']
    hooks['checkpoint'].update(saving.pop('checkpoint'))
    assert cfg['default_hooks'] == {**hooks, **cfg.pop('checks'), **saving}
    for settings in (cfg, stock):
        settings.pop('default_hooks')
    cfg.pop('container_light_defaults')
    for model in (cfg['model'], stock['model']):
        model.pop('backbone')
    assert cfg['model']['neck'].pop('in_channels') == [512]
    assert stock['model']['neck'].pop('in_channels') == [2048]
    assert cfg == stock


@every([path for path in CONFIGS['container'] if '_1x_coco' in path.stem])
def test_container_detectors_have_the_recipe_of_van_lska(path):
    cfg = read(path)
    van = ROOT / 'configs/van_lska' / path.name.replace('container-light', 'van-lska-tiny')
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr', 'default_hooks'):
        assert cfg[key] == read(van)[key], key


@pytest.mark.parametrize(
    ('folder', 'optimizer', 'eta_min'),
    [
        ('ghostnetv2', dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4), 1e-4),
        ('container', dict(type='AdamW', lr=1e-4, weight_decay=1e-4), 0.0),
    ],
)
def test_segmentors_have_the_recipe_that_the_readme_states(folder, optimizer, eta_min):
    for path in CONFIGS[folder]:
        if 'ade20k' not in path.stem:
            continue
        cfg = read(path)
        assert cfg.optim_wrapper.optimizer == optimizer
        (decay,) = cfg.param_scheduler
        assert (decay.type, decay.power, decay.eta_min) == ('PolyLR', 0.9, eta_min)
        assert decay.end == cfg.train_cfg.max_iters == 80000
        assert cfg.train_dataloader.batch_size == 4
        assert cfg.model.backbone.norm_cfg.type == 'SyncBN'


def test_deeplabv3_sees_a_map_at_the_output_stride_in_its_name():
    model = build(config('ghostnetv2', 'deeplabv3')).to('meta').eval()
    *_, third, last = model.backbone(meta_input(1, 3, 512, 512))
    assert third.shape == (1, 112, 32, 32)
    assert last.shape == (1, 160, 32, 32)
    assert model.decode_head.dilations == (1, 6, 12, 18)
    assert [m.conv.dilation[0] for m in model.decode_head.aspp_modules] == [1, 6, 12, 18]
    assert model.auxiliary_head.in_channels == third.shape[1]


def test_official_weights_come_by_option(tmp_path):
    library('mmseg')
    source = GhostNetV2(1.0, with_last_conv=True).state_dict()
    official = {**source, 'classifier.weight': torch.ones(2), 'conv_head.bias': torch.ones(2)}
    torch.save({'state_dict': official}, tmp_path / 'ck_ghostnetv2_10.pth.tar')
    cfg = Config.fromfile(config('ghostnetv2', 'fpn'))
    cfg.merge_from_dict(
        {
            'model.backbone.init_cfg.type': 'Pretrained',
            'model.backbone.init_cfg.checkpoint': str(tmp_path / 'ck_ghostnetv2_10.pth.tar'),
        }
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    loaded = model.backbone.state_dict()
    assert all(torch.equal(value, source[key]) for key, value in loaded.items())


# What the READMEs state


def test_the_readme_of_ghostnetv2_states_its_channels_and_counts():
    number = r'([\d.]+)'
    rows = re.findall(
        rf'\| {number} \| ([\d, ]+) \| {number} \| {number} \| {number} \| {number} \|',
        readme('ghostnetv2'),
    )
    assert [row[0] for row in rows] == ['1.0', '1.3', '1.6']
    for width, channels, params, with_classifier, macs, _ in rows:
        with torch.device('meta'):
            backbone = GhostNetV2(float(width))
            extractor = GhostNetV2(float(width), with_last_conv=True).eval()
        last = extractor.out_channels[-1]
        classifier = (last + 1) * 1280 + (1280 + 1) * 1000
        assert channels == ', '.join(map(str, backbone.out_channels))
        assert params == f'{count_params(backbone) / 1e6:.3f}'
        assert with_classifier == f'{(count_params(extractor) + classifier) / 1e6:.3f}'
        counted, _ = count_macs(extractor, meta_input(1, 3, 224, 224))
        assert macs == f'{(counted + last * 1280 + 1280 * 1000) / 1e6:.1f}'


def test_the_readme_of_ghostnetv2_states_the_share_of_the_backbone():
    stated = re.search(r'the backbone has ([\d.]+), ([\d.]+) and ([\d.]+) G', readme('ghostnetv2'))
    for width, giga in zip((1.0, 1.3, 1.6), stated.groups(), strict=True):
        with torch.device('meta'):
            backbone = GhostNetV2(width).eval()
        assert giga == f'{count_macs(backbone, meta_input(1, 3, 800, 1280))[0] / 1e9:.1f}'


@pytest.mark.filterwarnings('ignore:an input of')
def test_the_readme_of_container_states_its_counts():
    rows = re.findall(r"\| `'(\w+)'` \|[^|]*\| ([\d.]+) \| ([\d.]+) \|", readme('container'))
    assert [row[0] for row in rows] == ['light', 'full']
    for arch, params, macs in rows:
        with torch.device('meta'):
            counted = count_classifier(ContainerLight(arch), (224, 224))
        assert (params, macs) == (f'{counted.params / 1e6:.3f}', f'{counted.macs / 1e9:.2f}')


def test_the_readmes_keep_container_and_catnet_apart():
    other = (ROOT / 'configs/context_aggregation/README.md').read_text(encoding='utf-8')
    assert 'Not to be confused with CATNet' in readme('container')
    assert '../context_aggregation/README.md' in readme('container')
    assert 'Not to be confused with CONTAINER' in other
