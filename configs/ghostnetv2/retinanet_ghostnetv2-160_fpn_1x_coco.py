_base_ = './retinanet_ghostnetv2-100_fpn_1x_coco.py'

model = dict(backbone=dict(width=1.6), neck=dict(in_channels=[40, 64, 180, 256]))
