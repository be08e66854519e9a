_base_ = './retinanet_van-b1_fpn_1x_coco.py'

model = dict(backbone=dict(arch='b3'))
