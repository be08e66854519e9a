_base_ = [
    '../_base_/models/fpn_r50.py',
    '../_base_/plugins/eca.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/sgd_80k_ade20k.py',
    '../_base_/seg_runtime.py',
]

model = dict(backbone=dict(plugins=_base_.eca_adaptive))
