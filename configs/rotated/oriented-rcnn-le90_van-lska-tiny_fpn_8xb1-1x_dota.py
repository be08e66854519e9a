_base_ = [
    'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    '../_base_/backbones/van_lska.py',
    '../_base_/schedules/adamw_8xb1_dota.py',
    '../_base_/checks.py',
]

model = dict(
    # One card sees one crop, too few for the statistics of a plain BN.
    backbone=dict(_delete_=True, **_base_.van_lska_defaults, norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(_delete_=True, **_base_.dota_optimizer))
default_hooks = dict(**_base_.checks, **_base_.saving)
