"""Every registered layer, with options that keep it cheap."""

# A layer that is registered belongs here.
LAYERS = {
    'LKA': dict(kernel_size=7),
    'LSKA': dict(kernel_size=7),
    'LKATrivial': dict(kernel_size=5),
    'LSKATrivial': dict(kernel_size=5),
    'ContextAggregation': dict(reduction=2),
    'DFCAttention': {},
    'ECA': {},
    'MixedAffinity': dict(num_heads=2),
    'IdentityStart': dict(attention=dict(type='LSKA', kernel_size=7)),
    'AttentionSequence': dict(layers=[dict(type='LSKA', kernel_size=7), dict(type='ECA')]),
}
