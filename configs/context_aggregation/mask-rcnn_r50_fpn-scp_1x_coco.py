_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/checks.py']

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmlska.SpatialContextPyramid', in_channels=256, num_outs=5),
    ]
)
default_hooks = dict(**_base_.checks, **_base_.saving)
