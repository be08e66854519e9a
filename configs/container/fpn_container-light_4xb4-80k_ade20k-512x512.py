_base_ = [
    '../_base_/models/fpn_van-lska.py',
    '../_base_/backbones/container_light.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_80k_ade20k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.container_light_defaults, norm_cfg=_base_.norm_cfg),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
