_base_ = [
    '../_base_/models/mask-rcnn_van-lska_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x_coco.py',
    '../_base_/det_runtime.py',
]
