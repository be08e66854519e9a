# After the last norm of every bottleneck, as in the official ECA-ResNet. The first list is the
# paper's adaptive rule, the second the published kernels by stage.
eca_adaptive = [dict(cfg=dict(type='mmlska.ECA'), position='after_conv3')]
eca_3557 = [
    dict(
        cfg=dict(type='mmlska.ECA', kernel_size=kernel_size),
        stages=tuple(i == stage for i in range(4)),
        position='after_conv3',
    )
    for stage, kernel_size in enumerate((3, 5, 5, 7))
]
