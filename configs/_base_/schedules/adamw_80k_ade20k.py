_base_ = '../checks.py'

# The LSKA authors' segmentation recipe: 4 cards of 4 crops.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=0.0,
        begin=0,
        end=train_cfg['max_iters'],
        by_epoch=False,
    )
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmlska.SafeCheckpointHook', by_epoch=False, interval=train_cfg['val_interval']
    ),
    interruption=dict(type='mmlska.InterruptionHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    **_base_.checks,
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
