_base_ = '../van_lska/retinanet_van-lska-tiny_fpn_1x_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmlska.SpatialContextPyramid', in_channels=256, num_outs=5),
    ]
)
