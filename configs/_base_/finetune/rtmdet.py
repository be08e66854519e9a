# Fine-tuning a trained RTMDet that gets attention on every level of its pyramid. Each layer enters
# as the identity, so that training starts from what the detector knows; `load_from` gives its
# weights. The channels are those of the model: 96 (tiny), 128 (s), 192 (m), 256 (l), 320 (x).
#
#     _base_ = ['A/RECIPE/OF/RTMDET.py', 'PATH/TO/configs/_base_/finetune/rtmdet.py']
#     _base_.merge(_base_.finetune)
#     model = dict(neck=[_base_.model.neck, dict(_base_.levels, in_channels=96)])
levels = dict(
    type='mmlska.PyramidAttention',
    attention=dict(type='IdentityStart', attention=dict(type='LSKA')),
    num_outs=3,
)
finetune = dict(
    # Decay would pull the factors back to the start.
    optim_wrapper=dict(
        paramwise_cfg=dict(
            custom_keys={f'levels.{level}.g': dict(decay_mult=0.0) for level in range(3)}
        )
    ),
    default_hooks=dict(
        added_neck=dict(type='mmlska.AddedNeckHook'),
        new_parts=dict(type='mmlska.NewPartsHook'),
    ),
)
