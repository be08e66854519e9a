_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(
            type='mmlska.PyramidAttention',
            attention=dict(type='ContextAggregation'),
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
