_base_ = [
    '../_base_/models/upernet_van-lska.py',
    '../_base_/datasets/ade20k_multiple-of-32.py',
    '../_base_/schedules/adamw_160k_ade20k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(arch='b2', attention=dict(type='LKA')),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
train_dataloader = dict(batch_size=2)
