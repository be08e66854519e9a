_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(
            type='mmlska.PyramidAttention',
            attention=dict(type='LSKA'),
            in_channels=96,
            num_outs=3,
        ),
    ]
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmlska.BackboneCheckHook'),
    dict(type='mmlska.AddedNeckHook'),
]
