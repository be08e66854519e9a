_base_ = [
    '../_base_/models/fpn_van-lska.py',
    '../_base_/datasets/ade20k_multiple-of-32.py',
    '../_base_/schedules/adamw_40k_ade20k.py',
    '../_base_/seg_runtime.py',
]

model = dict(backbone=dict(arch='b0', attention=dict(type='LKA'), drop_path_rate=0.2))
