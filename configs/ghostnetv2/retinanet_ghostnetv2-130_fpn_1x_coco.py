_base_ = './retinanet_ghostnetv2-100_fpn_1x_coco.py'

model = dict(backbone=dict(width=1.3), neck=dict(in_channels=[32, 52, 144, 208]))
