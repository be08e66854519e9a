_base_ = './fpn_van-lska-nano_demo_digits-128x128.py'

# For studies that train a model hundreds of times. The first map has stride 2, so that there is
# something to see within a large kernel. It has some hundred iterations to learn: blocks start at
# full scale, the rate is three times the demo's, and background, most of all pixels, weighs less.
embed_dims = [16, 32, 64, 96]
data_preprocessor = dict(size=(64, 64))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        arch=dict(embed_dims=embed_dims, depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2]),
        patch_sizes=(3, 3, 3, 3),
        layer_scale_init_value=1.0,
    ),
    neck=dict(in_channels=embed_dims, out_channels=32),
    decode_head=dict(
        in_channels=[32, 32, 32, 32],
        channels=32,
        feature_strides=[2, 4, 8, 16],
        loss_decode=dict(class_weight=[0.4] + [1.0] * 10),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=1.5e-2))

data_root = 'data/digit_scenes_64/'
# Scenes this small are read faster than a worker hands them over.
in_this_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=8, dataset=dict(data_root=data_root), **in_this_process)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, pipeline=test_pipeline), **in_this_process
)
test_dataloader = val_dataloader

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
