_base_ = [
    '../_base_/models/fpn_van-lska.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/sgd_80k_ade20k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmlska.GhostNetV2', width=1.0, norm_cfg=_base_.norm_cfg),
    neck=dict(in_channels=[24, 40, 112, 160]),
)
