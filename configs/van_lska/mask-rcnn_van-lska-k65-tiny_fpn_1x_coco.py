_base_ = './mask-rcnn_van-lska-tiny_fpn_1x_coco.py'

model = dict(backbone=dict(attention=dict(kernel_size=65)))
