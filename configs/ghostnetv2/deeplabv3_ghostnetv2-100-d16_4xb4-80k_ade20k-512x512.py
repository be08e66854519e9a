_base_ = [
    '../_base_/models/segmentor_van-lska.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/sgd_80k_ade20k.py',
    '../_base_/seg_runtime.py',
]

# Rates and channels are those of the DeepLabV3 paper for an output stride of 16.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlska.GhostNetV2',
        width=1.0,
        output_stride=16,
        norm_cfg=_base_.norm_cfg,
    ),
    decode_head=dict(
        type='ASPPHead', in_channels=160, in_index=3, channels=256, dilations=(1, 6, 12, 18)
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=112,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
)
