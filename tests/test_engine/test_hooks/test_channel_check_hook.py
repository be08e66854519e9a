import pytest
import torch
from mmengine.registry import HOOKS, MODELS, DefaultScope
from runners import Part, runner_of
from torch import nn

from mmlska.engine import ChannelCheckHook, check_channels
from mmlska.models import VAN

ARCH = dict(embed_dims=[8, 16, 24, 32], depths=[1] * 4, ffn_ratios=[2] * 4)
CHANNELS = ARCH['embed_dims']


class Laterals(nn.Module):
    """A neck: one convolution for each map, in the order of the maps."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels, self.num_outs = 4, len(in_channels)
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in in_channels)

    def forward(self, maps):
        return [conv(x) for conv, x in zip(self.convs, maps, strict=True)]


class DeepestFirst(Laterals):
    """One whose options begin with the last map, as that of YOLOv3."""

    def forward(self, maps):
        return super().forward(maps[::-1])


class LastMap(nn.Module):
    """One that takes the last map alone, as that of YOLOF."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, 4, 1)

    def forward(self, maps):
        return self.conv(maps[-1])


class NeedsText(Laterals):
    def forward(self, maps, text):
        return super().forward(maps)


def detector(neck, **options):
    return Part(backbone=VAN(ARCH, **options).eval(), neck=neck)


def runs(model):
    """Whether the parts of a model run one after the other."""
    x = model.backbone(torch.rand(1, 3, 64, 64))
    try:
        for part in (getattr(model, name, None) for name in ('neck', 'decode_head')):
            x = x if part is None else part(x)
    except (RuntimeError, ValueError, AssertionError, IndexError):
        return False
    return True


FITTING = [
    Laterals(CHANNELS),
    Laterals(tuple(CHANNELS)),
    DeepestFirst(CHANNELS[::-1]),
    LastMap(32),
    nn.Sequential(Laterals(CHANNELS), Laterals([4] * 4)),
]


@pytest.mark.parametrize('neck', FITTING, ids=lambda neck: type(neck).__name__)
def test_a_neck_that_runs_passes(neck):
    model = detector(neck)
    assert runs(model)
    check_channels(model)


WRONG = [
    (Laterals([64, 128, 320, 512]), '[8, 16, 24, 32]'),
    (Laterals([8, 16, 24]), '[8, 16, 24, 32]'),
    (Laterals(CHANNELS[::-1]), '[8, 16, 24, 32]'),
    (DeepestFirst([512, 320, 128, 64]), '[32, 24, 16, 8]'),
    (LastMap(512), '32'),
    (nn.Sequential(Laterals([64, 128, 320, 512]), Laterals([4] * 4)), '[8, 16, 24, 32]'),
]


@pytest.mark.parametrize(('neck', 'right'), WRONG, ids=lambda value: str(value)[:20])
def test_a_wrong_neck_does_not_run_and_is_named_with_the_right_value(neck, right):
    model = detector(neck)
    assert not runs(model)
    with pytest.raises(ValueError, match=r'model\.neck\.in_channels=\S.* does not fit') as error:
        check_channels(model)
    assert f'Set model.neck.in_channels={right}' in str(error.value)


def test_what_cannot_be_decided_passes():
    check_channels(detector(NeedsText([1, 2, 3, 4])))
    check_channels(detector(Part(in_channels=[1, 2, 3, 4])))
    check_channels(Part(backbone=nn.Conv2d(3, 8, 1), neck=Laterals([1, 2])))
    check_channels(Part())


def test_a_check_leaves_the_mode_of_every_part():
    neck = Laterals([1, 2, 3, 4]).train()
    neck.convs[1].eval()
    with pytest.raises(ValueError, match='does not fit'):
        check_channels(detector(neck))
    assert [conv.training for conv in neck.convs] == [True, False, True, True] and neck.training


def test_the_hook_is_registered_and_checks_before_the_run():
    hook = HOOKS.build(dict(type='mmlska.ChannelCheckHook'))
    assert isinstance(hook, ChannelCheckHook)
    with pytest.raises(ValueError, match='VAN hands out maps with'):
        hook.before_run(runner_of(detector(Laterals([1, 2, 3, 4]))))


def segmentor(head, out_indices=(0, 1, 2, 3), **options):
    pytest.importorskip('mmseg')
    import mmseg.models  # noqa: F401

    backbone = dict(type='mmlska.VAN', arch=ARCH, out_indices=out_indices)
    settings = dict(num_classes=3, channels=8, num_convs=1)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(
            dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
                backbone=backbone,
                decode_head=dict(dict(type='FCNHead', **settings), **head),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
                **options,
            )
        ).eval()


HEADS = [
    dict(in_channels=32, in_index=3),
    dict(in_channels=24, in_index=-2),
    dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3], input_transform='resize_concat'),
    dict(in_channels=[32, 8], in_index=[3, 0], input_transform='resize_concat'),
]


@pytest.mark.parametrize('head', HEADS, ids=str)
def test_a_head_that_runs_passes(head):
    model = segmentor(head)
    assert runs(model)
    check_channels(model)


@pytest.mark.parametrize(
    ('head', 'right'),
    [
        (dict(in_channels=64, in_index=3), '32'),
        (
            dict(in_channels=[8, 16], in_index=[0, 3], input_transform='resize_concat'),
            '[8, 32]',
        ),
    ],
    ids=str,
)
def test_a_wrong_head_does_not_run_and_is_named_with_the_right_value(head, right):
    model = segmentor(head)
    assert not runs(model)
    with pytest.raises(ValueError, match=r'model\.decode_head\.in_channels=') as error:
        check_channels(model)
    assert f'Set model.decode_head.in_channels={right}' in str(error.value)


def test_a_choice_of_maps_is_tried_as_it_is_given():
    pytest.importorskip('mmseg')
    from mmseg.models.decode_heads import SegformerHead

    def head(in_channels):
        with DefaultScope.overwrite_default_scope('mmseg'):
            return SegformerHead(
                in_channels=in_channels, in_index=[1, 3], channels=8, num_classes=3
            )

    backbone = VAN(ARCH).eval()
    check_channels(Part(backbone=backbone, decode_head=head([16, 32])))
    wrong = Part(backbone=backbone, decode_head=head([16, 24]))
    assert not runs(wrong)
    with pytest.raises(ValueError, match=r'Set model\.decode_head\.in_channels=\[16, 32\]'):
        check_channels(wrong)


@pytest.mark.parametrize(
    ('taken', 'right'),
    [
        (dict(in_channels=64, in_index=3), '32'),
        (dict(in_channels=[8, 9], in_index=[0, 1], input_transform='resize_concat'), '[8, 16]'),
    ],
    ids=str,
)
def test_a_head_that_takes_the_output_of_the_head_before_it_is_checked(taken, right):
    pytest.importorskip('mmseg')
    from mmseg.models.decode_heads import OCRHead

    def head(**options):
        settings = dict(norm_cfg=dict(type='BN'), channels=8, ocr_channels=4, num_classes=3)
        with DefaultScope.overwrite_default_scope('mmseg'):
            return OCRHead(**options, **settings)

    backbone = VAN(ARCH).eval()
    fitting = dict(taken, in_channels=32 if right == '32' else [8, 16])
    check_channels(Part(backbone=backbone, decode_head=nn.ModuleList([head(**fitting)])))
    with pytest.raises(ValueError, match=r'decode_head\.0\.in_channels=.*does not fit') as error:
        check_channels(Part(backbone=backbone, decode_head=nn.ModuleList([head(**taken)])))
    assert f'Set model.decode_head.0.in_channels={right}' in str(error.value)


@pytest.mark.parametrize('index', [3, -2])
def test_an_index_beyond_the_maps_does_not_run_and_is_named(index):
    model = segmentor(dict(in_channels=32, in_index=index), out_indices=(3,))
    assert not runs(model)
    with pytest.raises(ValueError, match=rf'decode_head\.in_index={index} does.*1 maps.*0 to 0'):
        check_channels(model)


def test_auxiliary_heads_and_heads_behind_a_neck_are_checked_too():
    auxiliary = dict(type='FCNHead', in_channels=8, in_index=4, channels=8, num_classes=3)
    main = dict(in_channels=32, in_index=3)
    with pytest.raises(ValueError, match=r'model\.auxiliary_head\.in_index=4'):
        check_channels(segmentor(main, auxiliary_head=auxiliary))
    with pytest.raises(ValueError, match=r'model\.auxiliary_head\.1\.in_index=4'):
        both = [dict(auxiliary, in_index=0), auxiliary]
        check_channels(segmentor(main, auxiliary_head=both))
    neck = dict(type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=4)
    check_channels(segmentor(dict(in_channels=16, in_index=3), neck=neck))
    with pytest.raises(ValueError, match=r'the neck hands out.*decode_head\.in_channels=16'):
        check_channels(segmentor(main, neck=neck))


def test_a_built_detector_is_checked():
    pytest.importorskip('mmdet')
    from mmdet.models.necks import FPN, YOLOV3Neck

    def with_neck(kind, in_channels, **options):
        with DefaultScope.overwrite_default_scope('mmdet'):
            return Part(backbone=VAN('tiny', **options).eval(), neck=kind(in_channels=in_channels))

    def fpn(in_channels):
        return FPN(in_channels=in_channels, out_channels=8, num_outs=4)

    def yolo(in_channels):
        return YOLOV3Neck(3, in_channels=in_channels, out_channels=[8, 8, 8])

    check_channels(with_neck(fpn, [32, 64, 160, 256]))
    deepest_first = with_neck(yolo, [256, 160, 64], out_indices=(1, 2, 3))
    wrong = with_neck(fpn, [64, 128, 320, 512])
    assert not runs(wrong)
    with pytest.raises(ValueError, match=r'Set model\.neck\.in_channels=\[32, 64, 160, 256\]'):
        check_channels(wrong)
    check_channels(deepest_first)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda model: Part(detector=model),
        lambda model: Part(student=model, teacher=detector(Laterals(CHANNELS))),
    ],
)
def test_a_model_inside_another_one_is_checked(wrap):
    check_channels(wrap(detector(Laterals(CHANNELS))))
    with pytest.raises(ValueError, match=r'model\.detector\.neck\.in_channels=\[1, 2, 3, 4\]'):
        check_channels(wrap(detector(Laterals([1, 2, 3, 4]))))


class TellsNothing(nn.Module):
    """A neck that does not tell its channels, as mmdet's ChannelMapper, which DETRs have."""

    def __init__(self, in_channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in in_channels)

    def forward(self, maps):
        return [conv(x) for conv, x in zip(self.convs, maps, strict=True)]


class TellsHalf(LastMap):
    """One with another option for another map, as mmseg's DepthwiseSeparableASPPHead."""

    def __init__(self, in_channels, low_channels):
        super().__init__(in_channels)
        self.low = nn.Conv2d(low_channels, 4, 1)

    def forward(self, maps):
        return self.low(maps[0]).mean() + super().forward(maps)


@pytest.mark.parametrize(
    ('build', 'wrong'),
    [
        (lambda channels: TellsNothing(channels), [8, 16, 20, 32]),
        (lambda channels: TellsHalf(CHANNELS[-1], channels[0]), [16, 16, 24, 32]),
    ],
)
def test_a_convolution_that_cannot_take_its_map_is_found(build, wrong):
    right = detector(build(CHANNELS))
    check_channels(right)
    assert runs(right)
    model = detector(build(wrong))
    assert not runs(model)
    with pytest.raises(ValueError, match=r'model\.neck does not fit.*is built for \d+ channels'):
        check_channels(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_neck_of_detrs_is_checked():
    necks = pytest.importorskip('mmdet.models.necks')
    check_channels(detector(necks.ChannelMapper(CHANNELS, out_channels=8)))
    with pytest.raises(ValueError, match=r'convs\.2\.conv is built for 20 channels and gets 24'):
        check_channels(detector(necks.ChannelMapper([8, 16, 20, 32], out_channels=8)))


class DenseHead(nn.Module):
    """A head of a detector: the same convolution on each map of a neck."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, 2, 1)

    def forward(self, maps):
        return [self.conv(x) for x in maps]


class TakesQueries(DenseHead):
    """One behind a decoder, which gets no maps."""

    def forward(self, states, references):
        return super().forward(states)


class PixelDecoder(TellsNothing):
    def forward(self, maps, batch_img_metas):
        assert batch_img_metas[0]['img_shape'] == tuple(maps[0].shape[2:])
        return super().forward(maps)


@pytest.mark.parametrize('name', ['rpn_head', 'bbox_head', 'mask_head'])
def test_the_heads_of_detectors_are_checked_behind_their_neck(name):
    def model(channels, kind=DenseHead):
        return Part(backbone=VAN(ARCH), neck=TellsNothing(CHANNELS), **{name: kind(channels)})

    check_channels(model(4))
    check_channels(model(256, TakesQueries))
    wrong = rf'model\.{name}\.in_channels=256 does.*the neck hands out.*\[4, 4, 4, 4\].*=4$'
    with pytest.raises(ValueError, match=wrong):
        check_channels(model(256))


def test_what_a_head_with_queries_decodes_is_checked():
    def model(channels):
        head = Part(in_channels=channels, pixel_decoder=PixelDecoder(channels))
        return Part(backbone=VAN(ARCH), panoptic_head=head)

    check_channels(model(CHANNELS))
    with pytest.raises(ValueError, match=r'model\.panoptic_head does not fit.*256.*gets 8'):
        check_channels(model([256, 512, 1024, 2048]))


def test_the_heads_of_mmdet_are_checked():
    pytest.importorskip('mmdet')
    from mmdet.models.dense_heads import RetinaHead
    from mmdet.models.layers import PixelDecoder
    from mmdet.models.necks import FPN

    def behind(channels):
        with DefaultScope.overwrite_default_scope('mmdet'):
            neck = FPN(in_channels=CHANNELS, out_channels=8, num_outs=5)
            head = RetinaHead(num_classes=2, in_channels=channels, feat_channels=8)
        return Part(backbone=VAN(ARCH), neck=neck, bbox_head=head)

    check_channels(behind(8))
    with pytest.raises(ValueError, match=r'Set model\.bbox_head\.in_channels=8$'):
        check_channels(behind(256))
    for channels, is_right in ((CHANNELS, True), ([64, 128, 320, 512], False)):
        head = Part(pixel_decoder=PixelDecoder(channels, feat_channels=32, out_channels=32))
        model = Part(backbone=VAN(ARCH), panoptic_head=head)
        if is_right:
            check_channels(model)
            continue
        with pytest.raises(ValueError, match=r'Set model\.panoptic_head\.in_channels=\[8, 16'):
            check_channels(model)
