_base_ = [
    '../_base_/models/mask-rcnn_van-lska_fpn.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x_coco.py',
    '../_base_/det_runtime.py',
]

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=[64, 128, 320, 512]))
