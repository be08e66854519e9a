_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/backbones/container_light.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x_coco.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.container_light_defaults),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
