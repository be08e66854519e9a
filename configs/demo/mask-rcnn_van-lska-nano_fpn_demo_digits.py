_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/det_runtime.py',
    './_base_/van-lska-nano.py',
    './_base_/digits_detection.py',
    './_base_/schedule.py',
]

# One label for each digit: boxes, masks and the final NMS do not depend on the class.
model = dict(
    backbone=dict(_delete_=True, **_base_.backbone),
    neck=dict(
        in_channels=_base_.backbone.arch.embed_dims,
        out_channels=48,
        num_outs=4,
        norm_cfg=_base_.head_norm_cfg,
    ),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(scales=[4, 5.6], ratios=[1.0, 1.7], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=48,
            conv_out_channels=48,
            fc_out_channels=256,
            num_classes=10,
            reg_class_agnostic=True,
            norm_cfg=_base_.head_norm_cfg,
        ),
        mask_roi_extractor=dict(out_channels=48, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=1,
            in_channels=48,
            conv_out_channels=32,
            num_classes=10,
            class_agnostic=True,
            norm_cfg=_base_.head_norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=400, max_per_img=100),
        rcnn=dict(nms=dict(type='nms', iou_threshold=0.5, class_agnostic=True), max_per_img=20),
    ),
)

max_iters = 700
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=50, end=max_iters),
]

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
