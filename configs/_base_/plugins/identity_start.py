# Attention for a network that is trained: each layer enters as the identity, so that fine-tuning
# starts from what the network knows. `load_from` gives the weights of the network.
# In ResNet, after the 3x3 convolution of each bottleneck in stages 3 and 4: it has a quarter of the
# channels of the block, so that the layers stay small.
lska_in_resnet = [
    dict(
        cfg=dict(type='mmlska.IdentityStart', attention=dict(type='LSKA')),
        stages=(False, False, True, True),
        position='after_conv2',
    )
]
# On every level of a pyramid, as the second of its necks; in_channels and num_outs are the model's.
lska_on_levels = dict(
    type='mmlska.PyramidAttention',
    attention=dict(type='IdentityStart', attention=dict(type='LSKA')),
)
# For `optim_wrapper`: decay would pull the factors, of one axis as norms and biases, to the start.
paramwise_without_flat_decay = dict(flat_decay_mult=0.0)
