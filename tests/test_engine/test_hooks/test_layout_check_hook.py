"""A memory layout may not change a detector; where mmcv's operators would, the run is stopped."""

import pytest
import torch
from mmengine.registry import HOOKS
from runners import Part, runner_of
from torch import nn

from mmlska.engine import LayoutCheckHook, check_layout

pytest.importorskip('mmcv._ext', reason='mmcv was built without its compiled operators')
pytest.importorskip('mmdet')

from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign, RoIAlignRotated
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

ARCH = dict(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2])
ROIS = torch.tensor([[0.0, 8.0, 4.0, 90.0, 70.0], [0.0, 0.0, 0.0, 30.0, 20.0]])


def build():
    init_default_scope('mmdet')
    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone = dict(type='mmlska.VAN', arch=ARCH)
    cfg.neck.update(in_channels=ARCH['embed_dims'], out_channels=16)
    cfg.rpn_head.update(in_channels=16, feat_channels=16)
    for extractor in ('bbox_roi_extractor', 'mask_roi_extractor'):
        cfg.roi_head[extractor].out_channels = 16
    cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16, num_classes=3)
    cfg.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=3)
    torch.manual_seed(0)
    return MODELS.build(cfg)


def sample():
    boxes = torch.tensor([[8.0, 4.0, 90.0, 70.0], [1.0, 30.0, 40.0, 90.0]])
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 4:70, 8:90] = masks[1, 30:90, 1:40] = 1
    instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 2]), masks=BitmapMasks(masks.numpy(), 96, 128)
    )
    data_sample = DetDataSample(gt_instances=instances)
    data_sample.set_metainfo(
        dict(
            img_shape=(96, 128),
            ori_shape=(96, 128),
            batch_input_shape=(96, 128),
            pad_shape=(96, 128),
        )
    )
    return data_sample


def look(detector, image):
    """RoI features and losses of a detector."""
    torch.manual_seed(1)
    features = detector.eval().extract_feat(image)
    rois = detector.roi_head.bbox_roi_extractor(features[:4], ROIS)
    losses = detector.loss(image, [sample()])
    flat = {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}
    return rois, flat


@pytest.mark.parametrize('which', ['image', 'backbone', 'neck', 'detector'])
def test_a_detector_is_the_same_in_every_layout_or_refused(which):
    detector, image = build(), torch.rand(1, 3, 96, 128)
    rois, losses = look(detector, image)
    if which == 'image':
        image = image.contiguous(memory_format=torch.channels_last)
    else:
        part = detector if which == 'detector' else getattr(detector, which)
        part.to(memory_format=torch.channels_last)
    other_rois, other_losses = look(detector, image)
    assert {'loss_mask', 'loss_bbox', 'loss_rpn_cls'} <= set(losses)
    if which in ('neck', 'detector'):
        assert not torch.allclose(rois, other_rois, atol=1e-2)
        with pytest.raises(
            ValueError, match=r'^(neck|rpn_head)\..*roi_extractor.*contiguous_format'
        ):
            check_layout(detector)
        return
    check_layout(detector)
    assert torch.allclose(rois, other_rois, atol=1e-4)
    for name, loss in losses.items():
        assert torch.allclose(loss, other_losses[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    'operator',
    [
        lambda x: RoIAlign(3)(x, torch.tensor([[0, 1.0, 1, 10, 9]])),
        lambda x: RoIAlignRotated(3, 1.0, 0, True, False)(x, torch.tensor([[0, 5, 5, 6, 4, 0.3]])),
        DeformConv2dPack(16, 8, 3, padding=1),
        ModulatedDeformConv2dPack(16, 8, 3, padding=1),
    ],
)
def test_mmcv_still_misreads_what_is_not_contiguous(operator):
    """Where this fails, mmcv is mended: take the name out of MISREADING."""
    x = torch.randn(1, 16, 12, 14)
    right = operator(x)
    try:
        other = operator(x.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        assert 'must be contiguous' in str(error)
    else:
        assert not torch.allclose(right, other, atol=1e-2)


def test_other_models_may_have_any_layout():
    check_layout(nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last))
    check_layout(Part(neck=nn.Conv2d(8, 8, 3), roi=RoIAlign(3)))


def test_a_foreign_backbone_hands_its_layout_on():
    backbone = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r'^backbone\.weight is in channels_last'):
        check_layout(Part(backbone=backbone, neck=DeformConv2dPack(8, 8, 3)))


def test_the_hook_is_registered_and_checks_before_the_run():
    hook = HOOKS.build(dict(type='mmlska.LayoutCheckHook'))
    assert isinstance(hook, LayoutCheckHook)
    model = Part(neck=nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last), roi=RoIAlign(3))
    with pytest.raises(ValueError, match=r'neck\.weight is in channels_last'):
        hook.before_run(runner_of(model))
