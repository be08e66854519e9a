_base_ = './oriented-rcnn-le90_van-lska-tiny_fpn_8xb1-1x_dota.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=[64, 128, 320, 512]))
