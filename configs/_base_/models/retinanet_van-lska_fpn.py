_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../backbones/van_lska.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.van_lska_defaults),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
