_base_ = '../van_lska/mask-rcnn_van-lska-base_fpn_ms-3x_coco.py'

model = dict(backbone=dict(arch='b2', attention=dict(type='LKA')))
