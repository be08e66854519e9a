# In stages 2 to 4. In VAN one for each stage; in ResNet one for each bottleneck, whose four times
# as many channels are reduced as in GCNet, or the layers would double the weights of the backbone.
context_in_van = [
    dict(
        cfg=dict(type='mmlska.ContextAggregation'),
        stages=(False, True, True, True),
        position='after_stage',
    )
]
context_in_resnet = [
    dict(
        cfg=dict(type='mmlska.ContextAggregation', reduction=16),
        stages=(False, True, True, True),
        position='after_conv3',
    )
]
