# The LSKA authors' settings at the batch of VAN, 8 cards of 128 images: 300 epochs of cosine decay
# and 10 at its end. Norms, biases and layer scales do not decay, as in timm.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()
warm_up = dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True)
param_scheduler = [
    warm_up,
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=warm_up['end'],
        end=300,
        convert_to_iter_based=True,
    ),
]
del warm_up
auto_scale_lr = dict(enable=False, base_batch_size=1024)
