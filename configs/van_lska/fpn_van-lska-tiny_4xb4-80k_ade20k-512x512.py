_base_ = [
    '../_base_/models/fpn_van-lska.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_80k_ade20k.py',
    '../_base_/seg_runtime.py',
]
