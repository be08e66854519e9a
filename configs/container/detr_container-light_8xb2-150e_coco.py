_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    '../_base_/backbones/container_light.py',
    '../_base_/checks.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.container_light_defaults, out_indices=(3,)),
    neck=dict(in_channels=[512]),
)
default_hooks = dict(**_base_.checks, **_base_.saving)
