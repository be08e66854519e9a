_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/det_runtime.py',
    './_base_/van-lska-nano.py',
    './_base_/digits_detection.py',
    './_base_/schedule.py',
]

# One label for each digit: the final NMS does not depend on the class.
model = dict(
    backbone=dict(_delete_=True, **_base_.backbone),
    neck=dict(
        in_channels=_base_.backbone.arch.embed_dims,
        out_channels=64,
        num_outs=3,
        norm_cfg=_base_.head_norm_cfg,
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        norm_cfg=_base_.head_norm_cfg,
        anchor_generator=dict(
            octave_base_scale=3, scales_per_octave=2, ratios=[1.0, 1.7], strides=[8, 16, 32]
        ),
    ),
    test_cfg=dict(nms=dict(type='nms', iou_threshold=0.5, class_agnostic=True), max_per_img=20),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

max_iters = 1000
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
