_base_ = './mask-rcnn_van-lska-small_fpn_1x_coco.py'

model = dict(backbone=dict(arch='base'))
