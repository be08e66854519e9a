_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmlska.GhostNetV2', width=1.0),
    neck=dict(in_channels=[24, 40, 112, 160]),
)
# MMDetection's rate for RetinaNet, half of what the schedule says.
optim_wrapper = dict(optimizer=dict(lr=0.01))
