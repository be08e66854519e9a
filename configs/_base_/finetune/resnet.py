# Fine-tuning a trained network with a ResNet that gets attention. Each layer enters as the
# identity, so that training starts from what the network knows; `load_from` gives its weights.
#
#     _base_ = ['A/RECIPE/WITH/RESNET.py', 'PATH/TO/configs/_base_/finetune/resnet.py']
#     _base_.merge(_base_.finetune)
#
# After the 3x3 convolution of each bottleneck in stages 3 and 4: it has a quarter of the channels
# of the block, so that the layers stay small.
finetune = dict(
    model=dict(
        backbone=dict(
            plugins=[
                dict(
                    cfg=dict(type='mmlska.IdentityStart', attention=dict(type='LSKA')),
                    stages=(False, False, True, True),
                    position='after_conv2',
                )
            ]
        )
    ),
    # Decay would pull the factors back to the start.
    optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'identity_start.g': dict(decay_mult=0.0)})),
    default_hooks=dict(new_parts=dict(type='mmlska.NewPartsHook')),
)
