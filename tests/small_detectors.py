"""A small detector of each family that has a graph, and what mmdet finds with it."""

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmlska.engine.config import load_config

STRIDES = [4, 8, 16]
TEST = dict(
    nms_pre=60,
    min_bbox_size=0,
    score_thr=0.05,
    nms=dict(type='nms', iou_threshold=0.6),
    max_per_img=40,
)


def mask_rcnn() -> ConfigDict:
    model = load_config('configs/demo/mask-rcnn_van-lska-nano_fpn_demo_digits.py').model
    model.test_cfg.rpn.update(nms_pre=30, max_per_img=40)
    return model


def class_aware_mask_rcnn() -> ConfigDict:
    """A box and a mask for each class, as the configs of COCO have them."""
    model = mask_rcnn()
    model.roi_head.bbox_head.reg_class_agnostic = False
    model.roi_head.mask_head.class_agnostic = False
    model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio = 0
    model.test_cfg.rcnn.update(nms=dict(type='nms', iou_threshold=0.5), max_per_img=30)
    return model


def faster_rcnn() -> ConfigDict:
    model = mask_rcnn()
    model.type = 'FasterRCNN'
    model.roi_head.mask_head = model.roi_head.mask_roi_extractor = None
    return model


def retinanet() -> ConfigDict:
    model = load_config('configs/demo/retinanet_van-lska-pico_fpn_demo_digits-64x64.py').model
    model.test_cfg = ConfigDict(TEST)
    return model


def with_head(kind: str, **head: object) -> ConfigDict:
    """The same backbone and neck with the head of another detector."""
    model = retinanet()
    sizes = dict(num_classes=10, in_channels=32, feat_channels=32, stacked_convs=1)
    model.type, model['bbox_head'] = kind, ConfigDict(sizes, **head)
    return model


def fcos() -> ConfigDict:
    return with_head('FCOS', type='FCOSHead', strides=STRIDES)


def atss() -> ConfigDict:
    anchors = dict(octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=STRIDES)
    return with_head(
        'ATSS',
        type='ATSSHead',
        anchor_generator=dict(type='AnchorGenerator', **anchors),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
    )


def narrow(config: str) -> ConfigDict:
    """A detector of a real-time config, a third as wide."""
    model = load_config(f'configs/real_time/{config}').model
    model.backbone.update(widen_factor=0.125, deepen_factor=0.167, init_cfg=None)
    model.neck[0].update(in_channels=[32, 64, 128], out_channels=32)
    model.neck[1].in_channels = 32
    model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=10)
    return model


def rtmdet() -> ConfigDict:
    model = narrow('rtmdet_tiny-lska_8xb32-300e_coco.py')
    model.bbox_head.exp_on_reg = True
    model.test_cfg.update(nms_pre=300, max_per_img=100)
    return model


def yolox() -> ConfigDict:
    return narrow('yolox_tiny-lska_8xb8-300e_coco.py')


DETECTORS = {
    'mask-rcnn': mask_rcnn,
    'class-aware-mask-rcnn': class_aware_mask_rcnn,
    'faster-rcnn': faster_rcnn,
    'retinanet': retinanet,
    'fcos': fcos,
    'atss': atss,
    'rtmdet': rtmdet,
    'yolox': yolox,
}


def build(config: ConfigDict) -> nn.Module:
    """A detector in evaluation mode, whose scores and boxes differ from place to place."""
    register_all_modules(init_default_scope=False)
    config.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config).eval()
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    # With weights this large, scores of YOLOX are exactly 1, in no order, and boxes endless.
    for name, parameter in detector.named_parameters():
        if 'multi_level_conv_' in name:
            nn.init.normal_(parameter, std=0.02)
    return detector


def noise(images: int, height: int, width: int) -> Tensor:
    """Images of random blobs."""
    blobs = torch.randn(images, 3, height // 8, width // 8, generator=torch.manual_seed(1))
    return nn.functional.interpolate(blobs, size=(height, width), mode='bilinear')


@torch.no_grad()
def found_by_mmdet(
    detector: nn.Module, images: Tensor, sizes: Tensor | None = None
) -> list[InstanceData]:
    """What ``predict`` finds, in pixels of the input."""
    whole = tuple(images.shape[2:])
    shapes = [whole] * len(images) if sizes is None else [tuple(size) for size in sizes.tolist()]
    samples = [
        DetDataSample(metainfo=dict(img_shape=s, ori_shape=s, scale_factor=(1.0, 1.0)))
        for s in shapes
    ]
    return [s.pred_instances for s in detector.predict(images, samples, rescale=False)]
