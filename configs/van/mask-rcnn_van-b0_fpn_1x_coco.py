_base_ = '../van_lska/mask-rcnn_van-lska-tiny_fpn_1x_coco.py'

model = dict(backbone=dict(arch='b0', attention=dict(type='LKA')))
