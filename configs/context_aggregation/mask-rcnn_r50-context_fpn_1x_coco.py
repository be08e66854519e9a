_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/plugins/context_aggregation.py',
    '../_base_/checks.py',
]

model = dict(backbone=dict(plugins=_base_.context_in_resnet))
default_hooks = dict(**_base_.checks, **_base_.saving)
