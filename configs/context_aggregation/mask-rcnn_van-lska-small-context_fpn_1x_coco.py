_base_ = [
    '../van_lska/mask-rcnn_van-lska-small_fpn_1x_coco.py',
    '../_base_/plugins/context_aggregation.py',
]

model = dict(backbone=dict(plugins=_base_.context_in_van))
