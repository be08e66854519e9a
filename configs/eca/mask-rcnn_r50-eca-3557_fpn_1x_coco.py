_base_ = './mask-rcnn_r50-eca_fpn_1x_coco.py'

model = dict(backbone=dict(plugins=_base_.eca_3557))
