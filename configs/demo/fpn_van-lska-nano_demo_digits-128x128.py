_base_ = [
    '../_base_/models/fpn_van-lska.py',
    '../_base_/seg_runtime.py',
    './_base_/van-lska-nano.py',
    './_base_/digits_segmentation.py',
    './_base_/schedule.py',
    '../_base_/checks.py',
]

data_preprocessor = dict(size=(128, 128))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(_delete_=True, **_base_.backbone),
    neck=dict(
        in_channels=_base_.backbone.arch.embed_dims, out_channels=48, norm_cfg=_base_.head_norm_cfg
    ),
    decode_head=dict(
        in_channels=[48, 48, 48, 48],
        channels=48,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=dict(_delete_=True, **_base_.head_norm_cfg),
    ),
)

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=50, end=max_iters),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmlska.SafeCheckpointHook', by_epoch=False, interval=max_iters, max_keep_ckpts=2
    ),
    interruption=dict(type='mmlska.InterruptionHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    **_base_.checks,
)
