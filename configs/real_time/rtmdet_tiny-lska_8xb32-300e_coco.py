_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', '../_base_/checks.py']

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
default_hooks = dict(**_base_.checks, **_base_.saving)
