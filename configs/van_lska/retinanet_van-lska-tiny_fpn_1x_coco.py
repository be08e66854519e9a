_base_ = [
    '../_base_/models/retinanet_van-lska_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x_coco.py',
    '../_base_/det_runtime.py',
]
