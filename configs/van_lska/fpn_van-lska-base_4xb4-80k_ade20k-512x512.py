_base_ = './fpn_van-lska-small_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='base'))
