_base_ = './fpn_van-lska-tiny_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(attention=dict(kernel_size=35)))
