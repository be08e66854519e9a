import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel
from torch import nn

from mmlska.analysis import complexity
from mmlska.analysis.complexity import PartComplexity
from mmlska.engine.config import load_config
from mmlska.models import VAN

KINDS = {
    'LSKA': 'LSKA',
    'LKA': 'LKA',
    'LKA-official': 'LKA',
    'LKA-trivial': 'LKATrivial',
    'LSKA-trivial': 'LSKATrivial',
}
SHAPES = {
    'macs_bb_224': (224, 224),
    'macs_bb_512x512': (512, 512),
    'macs_bb_512x2048': (512, 2048),
    'macs_bb_1280x800': (800, 1280),
}

# Parameters (M) and multiply-adds (G) of conv and linear layers, from an independent count of the
# official architectures: detectors at 800 x 1280, segmentors at 512 x 512.
DETECTORS = {
    'mask-rcnn_van-b0_fpn_1x_coco': (23.885, 186.7),
    'mask-rcnn_van-lska-tiny_fpn_1x_coco': (23.808, 186.0),
    'mask-rcnn_van-b1_fpn_1x_coco': (33.516, 221.0),
    'mask-rcnn_van-lska-small_fpn_1x_coco': (33.387, 220.1),
    'mask-rcnn_van-b2_fpn_1x_coco': (46.233, 272.0),
    'mask-rcnn_van-lska-base_fpn_1x_coco': (45.947, 270.2),
    'retinanet_van-b0_fpn_1x_coco': (13.386, 168.5),
    'retinanet_van-lska-tiny_fpn_1x_coco': (13.309, 167.9),
    'retinanet_van-b1_fpn_1x_coco': (23.599, 202.4),
    'retinanet_van-lska-small_fpn_1x_coco': (23.470, 201.5),
    'retinanet_van-b2_fpn_1x_coco': (36.315, 253.4),
    'retinanet_van-lska-base_fpn_1x_coco': (36.030, 251.6),
}
SEGMENTORS = {
    'fpn_van-b0_8xb4-40k_ade20k-512x512': (7.984, 25.70),
    'fpn_van-lska-tiny_4xb4-80k_ade20k-512x512': (7.908, 25.53),
    'fpn_van-b1_8xb4-40k_ade20k-512x512': (17.615, 34.48),
    'fpn_van-lska-small_4xb4-80k_ade20k-512x512': (17.486, 34.24),
    'fpn_van-b2_8xb4-40k_ade20k-512x512': (30.332, 47.53),
    'fpn_van-lska-base_4xb4-80k_ade20k-512x512': (30.046, 47.08),
}


def test_a_convolution_and_a_linear_layer_follow_the_formula():
    conv = nn.Conv2d(6, 12, (1, 5), stride=2, padding=(0, 2), groups=3)
    macs, out = complexity.count_macs(conv, torch.zeros(1, 6, 9, 14))
    assert out.shape == (1, 12, 5, 7)
    assert macs == 5 * 7 * 12 * (6 // 3) * 5
    macs, _ = complexity.count_macs(nn.Linear(10, 4), torch.zeros(3, 10))
    assert macs == 3 * 10 * 4


def test_norms_and_activations_count_nothing():
    block = nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2))
    assert complexity.count_macs(block.eval(), torch.zeros(1, 4, 8, 8))[0] == 0


def test_parameters_include_frozen_ones():
    layer = nn.Linear(3, 5)
    layer.weight.requires_grad_(False)
    assert complexity.count_params(layer) == 3 * 5 + 5


def split_name(name: str) -> tuple[str, str, int] | None:
    """Kind, arch and kernel size of an entry of the table; None for other models."""
    for kind in sorted(KINDS, key=len, reverse=True):
        if name.startswith(f'{kind}-'):
            arch, _, kernel_size = name.removeprefix(f'{kind}-').partition('-k')
            return KINDS[kind], arch, int(kernel_size or 23)
    return None


@pytest.mark.slow
def test_every_arch_attention_and_kernel_size_equals_the_official_counts(golden):
    """Parameters and multiply-adds of the classifier, to the unit."""
    checked = 0
    for name, expected in golden('c_counts.json').items():
        if (parts := split_name(name)) is None:
            continue
        kind, arch, kernel_size = parts
        count = complexity.count_van(arch, kind, kernel_size)
        assert count.params == expected['params_cls'], name
        assert count.macs == expected['macs_cls_224'], name
        checked += 1
    assert checked == 75


@pytest.mark.parametrize(
    'name', ['LSKA-tiny-k7', 'LKA-small-k53', 'LKA-trivial-tiny-k35', 'LSKA-trivial-base-k23']
)
def test_the_backbone_equals_the_official_counts_at_every_shape(golden, name):
    expected = golden('c_counts.json')[name]
    kind, arch, kernel_size = split_name(name)
    backbone = VAN(arch, dict(type=kind, kernel_size=kernel_size)).eval().to('meta')
    assert complexity.count_params(backbone) == expected['params_backbone']
    for key, shape in SHAPES.items():
        macs, _ = complexity.count_macs(backbone, complexity.meta_input(1, 3, *shape))
        assert macs == expected[key], key


def test_multiply_adds_agree_with_the_counter_of_mmengine():
    """On convolutions and linear layers; it counts norms as well, which are left out here."""
    from mmengine.analysis import FlopAnalyzer

    backbone = VAN('tiny').eval()
    image = torch.zeros(1, 3, 64, 96)
    analyzer = FlopAnalyzer(backbone, image).unsupported_ops_warnings(False)
    by_operator = analyzer.uncalled_modules_warnings(False).by_operator()
    expected = sum(by_operator[name] for name in ('conv', 'linear'))
    assert complexity.count_macs(backbone, image)[0] == expected > 0


def test_a_backbone_whose_train_returns_nothing_is_counted():
    class ReturnsNothing(VAN):
        """Like the ResNet of mmdet and of mmseg."""

        def train(self, mode=True):
            super().train(mode)

    assert complexity.count_classifier(ReturnsNothing('tiny'), (64, 64)) == (
        complexity.count_classifier(VAN('tiny'), (64, 64))
    )


@pytest.mark.parametrize(('name', 'expected'), DETECTORS.items())
def test_detectors_equal_an_independent_count(name, expected):
    pytest.importorskip('mmdet')
    check_total(name, expected, macs_digits=1)


@pytest.mark.parametrize(('name', 'expected'), SEGMENTORS.items())
def test_segmentors_equal_an_independent_count(name, expected):
    pytest.importorskip('mmseg')
    check_total(name, expected, macs_digits=2)


def check_total(name: str, expected: tuple[float, float], macs_digits: int) -> None:
    cfg = load_config(name)
    parts = complexity.count_model(
        complexity.build_for_counting(cfg), complexity.default_shape(cfg)
    )
    params, macs = expected
    assert round(sum(part.params for part in parts) / 1e6, 3) == params
    counted = sum(part.macs for part in parts) / 1e9
    assert counted == pytest.approx(macs, abs=0.5 * 10**-macs_digits + 1e-3)


def test_the_parts_of_a_detector_make_up_the_whole():
    pytest.importorskip('mmdet')
    model = complexity.build_for_counting(load_config('mask-rcnn_van-lska-tiny_fpn_1x_coco'))
    parts = complexity.count_model(model, (800, 1280))
    assert [part.name for part in parts] == [
        'backbone',
        'neck',
        'rpn_head',
        'roi_head.bbox_head',
        'roi_head.mask_head',
    ]
    assert [part.remark for part in parts] == ['', '', '', '1000 regions', '100 regions']
    assert sum(part.params for part in parts) == complexity.count_params(model)


def test_a_transformer_follows_the_formula():
    pytest.importorskip('mmdet')
    model = complexity.build_for_counting(load_config('detr_container-light_8xb2-150e_coco'))
    height, width = 160, 256
    parts = {part.name: part for part in complexity.count_model(model, (height, width))}
    assert sum(part.params for part in parts.values()) == complexity.count_params(model)
    # Positions at stride 32, queries, channels, hidden channels and layers.
    p, q, c, hidden, layers = (height // 32) * (width // 32), 100, 256, 2048, 6

    def attention(queries, keys):
        # Projections of queries and output, of keys and values, and the two products of matrices.
        return 2 * queries * c**2 + 2 * keys * c**2 + 2 * queries * keys * c

    def ffn(positions):
        return 2 * positions * c * hidden

    assert parts['encoder'].macs == layers * (attention(p, p) + ffn(p))
    assert parts['decoder'].macs == layers * (attention(q, q) + attention(q, p) + ffn(q))
    # Classes, and boxes by two hidden layers, from the output of every layer of the decoder.
    assert parts['bbox_head'].macs == layers * q * (c * 81 + 2 * c**2 + c * 4)
    assert parts['query_embedding'].params == q * c
    assert parts['query_embedding'].macs is None


def test_heads_on_regions_do_not_depend_on_the_image():
    pytest.importorskip('mmdet')
    model = complexity.build_for_counting(load_config('mask-rcnn_van-lska-tiny_fpn_1x_coco'))
    small, large = (complexity.count_model(model, shape) for shape in ((64, 64), (128, 128)))
    for before, after in zip(small, large, strict=True):
        grows = 1 if before.name.startswith('roi_head') else 4
        assert after.macs == grows * before.macs, before.name


def test_each_stage_of_a_cascade_is_counted():
    pytest.importorskip('mmdet')
    stages = 3
    base = load_config('mask-rcnn_van-lska-tiny_fpn_1x_coco')
    roi_head = base.model.roi_head
    roi_head.update(type='CascadeRoIHead', num_stages=stages, stage_loss_weights=[1, 0.5, 0.25])
    roi_head.bbox_head = [roi_head.bbox_head] * stages
    base.model.train_cfg.rcnn = [base.model.train_cfg.rcnn] * stages
    parts = complexity.count_model(complexity.build_for_counting(base), (64, 64))
    heads = [part for part in parts if 'bbox_head' in part.name]
    assert [part.name for part in heads] == [f'roi_head.bbox_head.{i}' for i in range(stages)]
    assert len({(part.params, part.macs) for part in heads}) == 1


def test_a_head_for_training_only_adds_parameters_but_no_work():
    pytest.importorskip('mmseg')
    cfg = load_config('upernet_van-lska-base_8xb2-160k_ade20k-512x512')
    parts = complexity.count_model(complexity.build_for_counting(cfg), (64, 64))
    assert parts[-1].name == 'auxiliary_head'
    assert parts[-1].macs is None and parts[-1].remark == 'training only'
    assert round(sum(part.params for part in parts) / 1e6, 3) == 56.268


def test_the_image_is_padded_as_the_model_pads_it():
    model = nn.Module()
    model.data_preprocessor = nn.Module()
    assert complexity.padded_shape(model, (801, 1280)) == (801, 1280)
    model.data_preprocessor.pad_size_divisor = 32
    assert complexity.padded_shape(model, (801, 1280)) == (832, 1280)


def test_a_model_without_known_heads_is_refused_with_its_parts():
    model = nn.Module()
    model.encoder = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r'Module part by part.*bbox_head.*its parts are encoder'):
        complexity.dense_heads(model)


@pytest.mark.parametrize(
    ('scope', 'shape'), [('mmdet', (800, 1280)), ('mmseg', (512, 512)), ('mmpretrain', (224, 224))]
)
def test_the_default_shape_is_that_of_the_papers(scope, shape):
    assert complexity.default_shape(Config(dict(default_scope=scope))) == shape


def test_a_detector_of_square_images_is_counted_at_its_square():
    resize = dict(type='Resize', scale=(416, 416), keep_ratio=True)
    padded = [resize, dict(type='Pad', pad_to_square=True)]
    cfg = Config(dict(default_scope='mmdet', test_pipeline=padded))
    assert complexity.default_shape(cfg) == (416, 416)
    cfg.test_pipeline = [resize]
    assert complexity.default_shape(cfg) == (800, 1280)


def test_the_comparison_has_a_row_per_model_and_a_column_per_kernel_size(capsys):
    records = complexity.compare_van(['tiny'], ['LKA', 'LSKA'], [7, 23])
    rows = complexity.comparison_rows(records)
    assert rows == [
        ['arch', 'attention', 'k=7', 'k=23'],
        ['tiny', 'LKA', '4.016 / 0.829', '4.106 / 0.864'],
        ['tiny', 'LSKA', '4.010 / 0.825', '4.029 / 0.833'],
    ]
    assert '4/4' in capsys.readouterr().err


def test_an_illegal_kernel_size_is_named():
    with pytest.raises(ValueError, match='24'):
        complexity.count_van('tiny', 'LSKA', 24)


def test_the_table_of_parts_ends_with_the_total():
    parts = [
        PartComplexity('backbone', 2_000_000, 3_000_000_000),
        PartComplexity('auxiliary_head', 500_000, None, 'training only'),
    ]
    rows = complexity.part_rows(parts)
    assert rows[2] == ['auxiliary_head', '0.500 M', '-', 'training only']
    assert rows[-1] == ['total', '2.500 M', '3.000 G', '']


def test_tables_are_aligned_or_markdown():
    rows = [['part', 'size'], ['neck', '10']]
    assert complexity.format_table(rows) == 'part  size\n----  ----\nneck  10'
    assert complexity.format_table(rows, markdown=True).splitlines() == [
        '| part | size |',
        '| ---- | ---- |',
        '| neck | 10   |',
    ]


@pytest.mark.parametrize(
    ('settings', 'channels'),
    [
        (dict(mean=torch.zeros(6, 1, 1)), 6),
        (dict(mean=torch.zeros(1, 1, 1)), 5),
        (dict(), 5),
    ],
)
def test_an_image_has_the_bands_that_the_model_takes(settings, channels):
    model = nn.Module()
    model.data_preprocessor = nn.Module()
    vars(model.data_preprocessor).update(settings)
    model.backbone = nn.Sequential(nn.ReLU(), nn.Conv2d(5, 8, 3))
    assert complexity.image_channels(model) == channels


def test_a_backbone_tells_its_bands():
    model = nn.Module()
    model.backbone = VAN('tiny', in_channels=4)
    assert complexity.image_channels(model) == 4


class Odd(nn.Module):
    """A detector of none of the known parts; the head runs inside the decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.head = nn.ModuleList([nn.Conv2d(4, 2, 1)])
        self.unused = nn.Linear(3, 3)

    def train(self, mode=True):
        super().train(mode)

    def forward(self, image, samples, mode):
        assert mode == 'tensor' and samples[0].img_shape == tuple(image.shape[2:])
        return self.head[0](self.encoder(image))


def test_a_model_of_other_parts_is_run_as_a_whole():
    model = Odd()
    parts = complexity.count_model(model, (8, 4))
    assert [(part.name, part.params, part.macs) for part in parts] == [
        ('encoder', 16, 8 * 4 * 3 * 4),
        ('head', 10, 8 * 4 * 4 * 2),
        ('unused', 12, None),
    ]


def test_a_model_that_cannot_run_is_refused_with_both_reasons():
    model = Odd()
    del model.encoder
    with pytest.raises(ValueError, match=r"count a Odd: neither.*'backbone'.*nor.*'encoder'"):
        complexity.count_model(model, (8, 4))


def test_a_detector_whose_train_returns_nothing_is_built(monkeypatch):
    monkeypatch.setattr(complexity.MODELS, 'build', lambda _: Odd())
    model = complexity.build_for_counting(Config(dict(model=dict(type='Odd'), default_scope=None)))
    assert not model.training and model.encoder.weight.is_meta


class Views(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_a_model_under_test_time_augmentation_is_the_model_itself(monkeypatch):
    inner = Odd()
    inner.test_step = None
    model = Views(inner)
    monkeypatch.setattr(complexity.MODELS, 'build', lambda _: model)
    model = complexity.build_for_counting(Config(dict(model=dict(type='Odd'), default_scope=None)))
    assert model is inner


class NeedsSamples(nn.Module):
    """A segmentor whose head needs what forward() does not hand on."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.decode_head = nn.ModuleList([nn.Conv2d(4, 2, 1)])

    def encode_decode(self, image, metas):
        assert metas[0]['img_shape'] == tuple(image.shape[2:])
        return self.decode_head[0](self.backbone(image))


def test_a_segmentor_is_run_as_it_predicts():
    parts = complexity.count_model(NeedsSamples(), (8, 4))
    assert sum(part.macs or 0 for part in parts) == 8 * 4 * (3 * 4 + 4 * 2)
