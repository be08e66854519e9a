_base_ = './fpn_r50-eca_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(plugins=_base_.eca_3557))
