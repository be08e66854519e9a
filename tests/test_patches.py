"""mmcv's kernels misread maps that are not contiguous; no layout may change a detector."""

import pytest
import torch

from mmlska.models import VAN
from mmlska.patches import make_roi_align_read_any_layout

pytest.importorskip('mmcv._ext', reason='mmcv was built without its compiled operators')
pytest.importorskip('mmdet')

from mmcv.ops import RoIAlign, roi_align
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
def test_a_detector_is_the_same_in_every_layout(which):
    detector, image = build(), torch.rand(1, 3, 96, 128)
    rois, losses = look(detector, image)
    if which == 'image':
        image = image.contiguous(memory_format=torch.channels_last)
    else:
        part = detector if which == 'detector' else getattr(detector, which)
        part.to(memory_format=torch.channels_last)
    other_rois, other_losses = look(detector, image)
    assert torch.allclose(rois, other_rois, atol=1e-4)
    assert {'loss_mask', 'loss_bbox', 'loss_rpn_cls'} <= set(losses)
    for name, loss in losses.items():
        assert torch.allclose(loss, other_losses[name], rtol=1e-3, atol=1e-5), name


def test_the_maps_that_leave_the_backbone_are_contiguous():
    backbone = VAN(ARCH, stage_norm_cfg=dict(type='BN')).eval()
    image = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    outs = backbone.to(memory_format=torch.channels_last)(image)
    assert all(out.is_contiguous() for out in outs)


def test_roi_align_gives_right_features_and_gradients_for_channels_last():
    features = torch.randn(1, 16, 24, 32)
    layer = RoIAlign((7, 7), spatial_scale=0.25)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        given = features.clone(memory_format=layout).requires_grad_()
        pooled = layer(given, ROIS)
        pooled.square().sum().backward()
        results.append((pooled, given.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][0], roi_align(features, ROIS, (7, 7), 0.25, 0, 'avg', True))


def test_the_layer_is_wrapped_once():
    forward = RoIAlign.forward
    make_roi_align_read_any_layout()
    assert RoIAlign.forward is forward
