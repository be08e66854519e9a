_base_ = [
    '../van_lska/retinanet_van-lska-tiny_fpn_1x_coco.py',
    '../_base_/plugins/context_aggregation.py',
]

model = dict(backbone=dict(plugins=_base_.context_in_van))
