_base_ = ['mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '../_base_/checks.py']

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
default_hooks = dict(**_base_.checks, **_base_.saving)
