_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmlska.SpatialContextPyramid', in_channels=256, num_outs=5),
    ]
)
custom_hooks = [dict(type='mmlska.BackboneCheckHook'), dict(type='mmlska.AddedNeckHook')]
