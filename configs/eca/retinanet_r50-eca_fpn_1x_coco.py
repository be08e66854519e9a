_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/plugins/eca.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/sgd_1x_coco.py',
    '../_base_/det_runtime.py',
]

model = dict(backbone=dict(plugins=_base_.eca_adaptive))
