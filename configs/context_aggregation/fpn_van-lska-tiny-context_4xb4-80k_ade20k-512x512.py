_base_ = [
    '../van_lska/fpn_van-lska-tiny_4xb4-80k_ade20k-512x512.py',
    '../_base_/plugins/context_aggregation.py',
]

model = dict(backbone=dict(plugins=_base_.context_in_van))
