_base_ = './adamw_80k_ade20k.py'

# The VAN authors' UperNet recipe, which is Swin's: 8 cards of 2 crops, no decay for the norms.
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
train_cfg = dict(max_iters=160000, val_interval=16000)
warm_up = dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
param_scheduler = [
    warm_up,
    dict(
        _base_.param_scheduler[0],
        power=1.0,
        begin=warm_up['end'],
        end=train_cfg['max_iters'],
    ),
]
del warm_up
default_hooks = dict(checkpoint=dict(interval=train_cfg['val_interval']))
