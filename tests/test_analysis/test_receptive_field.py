"""Receptive fields: closed forms, and the backbones of all libraries."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from script_runs import TOOLS, run_here
from torch import nn

from mmlska.analysis import receptive_field
from mmlska.analysis.receptive_field import (
    Settings,
    Subject,
    as_the_model_sees,
    backbone_settings,
    build_backbone,
    effective_receptive_field,
    measure_field,
    preprocessor_settings,
    smallest_square,
    theoretical_field,
)
from mmlska.conversion.images import random_images
from mmlska.engine.config import load_config
from mmlska.layers import ECA, LKA, LSKA, LKATrivial, LSKATrivial
from mmlska.models import VAN

SCRIPT = TOOLS / 'analysis_tools' / 'receptive_field.py'
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DETECTOR, SEGMENTOR = CONFIGS / 'small_retinanet.py', CONFIGS / 'small_fpn.py'
BOTH = pytest.mark.parametrize('direction', ['signs', 'sum'])


def constant_conv(kernel_size: int, stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    padding = kernel_size // 2 if padding is None else padding
    conv = nn.Conv2d(1, 1, kernel_size, stride, padding, bias=False)
    nn.init.constant_(conv.weight, 0.5)
    return conv


def noise(size: int, channels: int = 1) -> list[torch.Tensor]:
    return random_images(size, 1, channels=channels)


@BOTH
@pytest.mark.parametrize(
    ('convs', 'line'),
    [
        ([constant_conv(3), constant_conv(3)], [1, 2, 3, 2, 1]),
        ([constant_conv(3), constant_conv(3), constant_conv(3)], [1, 3, 6, 7, 6, 3, 1]),
        # The second kernel takes steps of two: [1, 0, 1, 0, 1] convolved with [1, 1, 1].
        ([constant_conv(3, stride=2), constant_conv(3)], [1, 1, 2, 1, 2, 1, 1]),
    ],
    ids=['two', 'three', 'strided'],
)
def test_a_stack_of_constant_convolutions_has_the_convolution_of_its_kernels(
    convs, line, direction
):
    stack = nn.Sequential(*convs)
    line = np.array(line, float)
    reach = len(line) // 2
    expected = np.zeros((32, 32))
    middle = slice(16 - reach, 17 + reach)
    expected[middle, middle] = np.outer(line, line) / line.sum() ** 2
    found = effective_receptive_field(stack, noise(32), direction=direction)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    box = (16 - reach, 16 - reach, 17 + reach, 17 + reach)
    assert theoretical_field(stack, (32, 32), channels=1) == box


def test_shares_of_a_known_field_are_its_squares():
    line = np.array([1, 2, 3, 2, 1]) / 9
    field = np.pad(np.outer(line, line), (14, 13))
    # The middle alone holds (3 / 9) ** 2 = 0.11, three by three hold (7 / 9) ** 2 = 0.60.
    sides = [smallest_square(field, share).side for share in (0.1, 0.2, 0.6, 0.61, 0.99)]
    assert sides == [1, 3, 3, 5, 5]
    assert smallest_square(field, 0.2).area == 9 / 32**2


def test_an_even_field_is_seen_whole_by_a_square_as_large_as_the_image():
    even = np.full((10, 10), 0.01)
    assert smallest_square(even, 0.99) == receptive_field.Reach(0.99, 10, 1.0)
    assert smallest_square(even, 0.25).side == 5


@pytest.mark.parametrize('share', [0, 1, 20])
def test_a_share_is_no_percentage(share):
    with pytest.raises(ValueError, match=f'between 0 and 1, .* got {share}'):
        smallest_square(np.ones((3, 3)), share)


@pytest.mark.parametrize('layer', [LSKA, LKA, LSKATrivial, LKATrivial])
@pytest.mark.parametrize('kernel_size', [7, 11, 23, 35])
def test_the_field_of_one_attention_is_its_kernel(layer, kernel_size):
    attention = layer(4, kernel_size=kernel_size)
    size, reach = kernel_size + 6, kernel_size // 2
    field = effective_receptive_field(attention, noise(size, 4))
    middle = slice(size // 2 - reach, size // 2 + reach + 1)
    inside = np.zeros((size, size), bool)
    inside[middle, middle] = True
    assert (field[~inside] == 0).all() and field[inside].sum() == pytest.approx(1)
    box = theoretical_field(attention, (size, size), channels=4)
    assert box == (middle.start, middle.start, middle.stop, middle.stop)


def small_van(**options) -> VAN:
    arch = dict(embed_dims=[8, 16], depths=[1, 1], ffn_ratios=[2, 2])
    return VAN(arch, dict(type='LSKA', kernel_size=7), out_indices=(0, 1), **options).eval()


def test_the_theory_of_a_van_is_the_sum_over_its_layers():
    # A stem of 7, and in each block k - 1 for the attention and 2 for the FFN, at stride 4, then 8.
    first = 7 + 4 * (6 + 2)
    second = first + 4 * 2 + 8 * (6 + 2)
    for stage, side in ((0, first), (1, second)):
        top, left, bottom, right = theoretical_field(small_van(), (160, 160), stage)
        assert (bottom - top, right - left) == (side, side)
        assert (top + bottom - 1) / 2 == (left + right - 1) / 2 == 80


def test_one_global_mean_sees_the_whole_image():
    assert theoretical_field(nn.Sequential(ECA(4)), (12, 20), channels=4) == (0, 0, 12, 20)


def test_measuring_leaves_the_backbone_as_it_was():
    backbone = small_van()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    theoretical_field(backbone, (64, 64))
    effective_receptive_field(backbone, noise(64, 3))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_sum_of_normalised_channels_is_refused_until_they_are_weighted():
    backbone = small_van()
    with pytest.raises(ValueError, match=r"sum of the channels is constant.*direction='signs'"):
        effective_receptive_field(backbone, noise(64, 3), direction='sum')
    nn.init.uniform_(backbone.norm2.weight)
    assert effective_receptive_field(backbone, noise(64, 3), direction='sum').max() > 0


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(stage=2), ValueError, 'stage 2 is out of range: .* 2 maps, .* 0 to 1, or -2 to -1'),
        (dict(direction='sine'), ValueError, "'sine' is unknown: .* signs, sum; did you mean sig"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(options, error, message):
    with pytest.raises(error, match=message):
        effective_receptive_field(small_van(), noise(32, 3), **options)


def test_a_tensor_of_images_is_one_batch():
    van, images = small_van(), torch.rand(2, 3, 32, 32)
    np.testing.assert_array_equal(
        effective_receptive_field(van, images), effective_receptive_field(van, [images])
    )


@pytest.mark.parametrize(
    ('images', 'found'),
    [
        (torch.rand(3, 32, 32), r'Tensor \(3, 32, 32\)'),
        ([np.ones((1, 3, 32, 32))], r'ndarray \(1, 3, 32, 32\)'),
    ],
)
def test_what_is_no_batch_of_images_is_told(images, found):
    with pytest.raises(TypeError, match=rf'Tensor \(N, C, H, W\).*not as {found}'):
        effective_receptive_field(small_van(), images)


def test_no_image_and_no_dependence_are_errors():
    with pytest.raises(ValueError, match='at least one image'):
        effective_receptive_field(small_van(), [])
    deaf = constant_conv(3)
    nn.init.zeros_(deaf.weight)
    for measure in (
        lambda: effective_receptive_field(deaf, noise(8)),
        lambda: theoretical_field(deaf, (8, 8), channels=1),
    ):
        with pytest.raises(ValueError, match='does not depend on the image'):
            measure()


def test_outputs_that_are_no_maps_are_named():
    class Vector(nn.Module):
        def forward(self, x):
            return [x.mean((2, 3))]

    with pytest.raises(TypeError, match=r'no map \(N, C, H, W\) but torch.Size\(\[1, 1\]\)'):
        effective_receptive_field(Vector(), noise(8))


def stock(library: str, name: str) -> Path:
    module = pytest.importorskip(f'{library}.models')
    return Path(module.__file__).parents[1] / '.mim' / 'configs' / name


@pytest.mark.parametrize(
    ('library', 'name', 'maps'),
    [
        ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', 4),
        ('mmdet', 'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', 3),
        ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', 3),
        ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', 4),
        ('mmpretrain', 'resnet/resnet18_8xb32_in1k.py', 1),
    ],
)
def test_backbones_of_every_library_are_measured(library, name, maps):
    path = stock(library, name)
    if not path.is_file():
        pytest.skip(f'{library} has no {name}')
    field = measure_field(Subject('any', load_config(path)), Settings(number=1, size=96))
    assert field.stage == maps - 1 and field.weights == 'random'
    assert field.contribution.sum() == pytest.approx(1)
    sides = [reach.side for reach in field.reaches()]
    assert 1 <= sides[0] <= sides[1] <= sides[2] < sides[3] <= 96


def test_the_backbone_inside_a_semi_supervised_detector_is_found():
    path = stock(
        'mmdet', 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    )
    assert backbone_settings(load_config(path))['type'] == 'ResNet'


def test_images_are_normalised_as_each_model_does_it():
    stage = torch.randn(2, 3, 4, 5)
    retinanet = load_config(stock('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py'))
    same = as_the_model_sees(stage, preprocessor_settings(retinanet))
    torch.testing.assert_close(same, stage)
    assert as_the_model_sees(stage, None) is stage

    yolox = load_config(stock('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py'))
    assert preprocessor_settings(yolox)['type'] == 'DetDataPreprocessor'
    white = torch.ones(1, 3, 2, 2) * (255 - torch.tensor([123.675, 116.28, 103.53])[:, None, None])
    white /= torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    # From 0 to 255, blue first.
    white[:, 2] = -103.53 / 57.375
    pixels = as_the_model_sees(white, preprocessor_settings(yolox))
    expected = torch.tensor([0.0, 255.0, 255.0])[:, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(pixels, expected, atol=1e-3, rtol=0)

    teacher = load_config(
        stock('mmdet', 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    )
    assert preprocessor_settings(teacher)['mean'] == [103.530, 116.280, 123.675]


def test_a_model_without_a_backbone_is_named(tmp_path):
    config = tmp_path / 'bare.py'
    config.write_text("default_scope = 'mmengine'\nmodel = dict(type='Toy', head=dict(type='H'))")
    with pytest.raises(ValueError, match=r'bare\.py: no backbone in the model, .* type, head'):
        backbone_settings(load_config(config))


def test_weights_of_the_model_and_of_its_backbone_give_the_same_field(tmp_path):
    pytest.importorskip('mmdet.models')
    cfg = load_config(DETECTOR)
    weights = build_backbone(cfg).state_dict()
    torch.save(weights, tmp_path / 'backbone.pth')
    whole = {f'backbone.{key}': value for key, value in weights.items()}
    torch.save(dict(state_dict=whole | {'head.bias': torch.ones(1)}), tmp_path / 'whole.pth')
    for name in ('backbone.pth', 'whole.pth'):
        loaded = build_backbone(cfg, str(tmp_path / name)).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in loaded.items())
    torch.save(dict(other=torch.ones(1)), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other\.pth'):
        build_backbone(cfg, str(tmp_path / 'other.pth'))


VARIED = 'model.backbone.attention.kernel_size=7,11'
OTHER = 'model.backbone.attention.kernel_size=7,15'
QUICK = ['--size', '64', '--num-images', '2']


def test_the_tool_draws_writes_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip('mmseg.models')
    arguments = [SCRIPT, SEGMENTOR, '--vary', VARIED, *QUICK, '--out-dir', 'out', '--stage', '0']
    out = run_here(*arguments, cwd=tmp_path).stdout
    assert 'measured on 2 images of random noise, 64 x 64 (--images DIR takes your own)' in out
    assert '39 x 39' in out and '55 x 55' in out
    picture = cv2.imread(str(tmp_path / 'out' / 'receptive_field.png'))
    assert picture.std() > 10
    written = json.loads((tmp_path / 'out' / 'receptive_field.json').read_text())
    names = [field['name'] for field in written['fields']]
    assert names == ['small_fpn, kernel_size=7', 'small_fpn, kernel_size=11']
    assert [field['stride'] for field in written['fields']] == [4, 4]

    measured = []

    def measure(subject, *rest):
        measured.append(subject.name)
        return measure_field(subject, *rest)

    monkeypatch.setattr(receptive_field, 'measure_field', measure)
    run_here(*arguments, cwd=tmp_path)
    again = json.loads((tmp_path / 'out' / 'receptive_field.json').read_text())
    assert not measured and again == written
    run_here(*(word if word != VARIED else OTHER for word in arguments), cwd=tmp_path)
    assert measured == ['small_fpn, kernel_size=15']


def test_the_tool_measures_on_images(tmp_path):
    pytest.importorskip('mmseg.models')
    (tmp_path / 'photos').mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)
        cv2.imwrite(str(tmp_path / 'photos' / f'{i}.png'), pixels)
    out = run_here(SCRIPT, SEGMENTOR, *QUICK, '--images', 'photos', cwd=tmp_path).stdout
    assert 'measured on up to 2 images of photos, 64 x 64' in out
    written = tmp_path / 'outputs' / 'receptive_field' / 'receptive_field.json'
    assert json.loads(written.read_text())['fields'][0]['images'] == 2


@pytest.mark.parametrize(
    ('options', 'status', 'message'),
    [
        (['--checkpoint', 'a.pth', 'b.pth'], 2, 'one file for each config: 1, got 2'),
        (['--checkpoint', 'absent.pth'], 1, "no checkpoint file 'absent.pth'"),
        (['--images', 'absent'], 1, "folder 'absent' of images does not exist"),
        (['--direction', 'sun'], 1, "'sun' is unknown: allowed are signs, sum; did you mean sum?"),
        (['--stage', '9'], 1, 'stage 9 is out of range: the backbone returns 4 maps'),
        (['--size', '0'], 1, 'size of images must be positive, but is 0'),
    ],
)
def test_a_mistake_ends_the_tool_with_one_message(options, status, message, tmp_path):
    pytest.importorskip('mmseg.models')
    done = run_here(SCRIPT, SEGMENTOR, *QUICK, *options, cwd=tmp_path, expect=status)
    assert message in done.stderr
