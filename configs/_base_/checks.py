# Hooks that say before the first iteration what would otherwise fail late, or never. They stand
# among the default hooks, which mmengine merges by name: custom_hooks of one's own config replace
# the list of its base, and these stay. docs/training_options.md tells what they check.
# A variable, since mmengine takes no key from two bases.
checks = dict(
    data_check=dict(type='mmlska.DataCheckHook'),
    channel_check=dict(type='mmlska.ChannelCheckHook'),
    num_class_check=dict(type='mmlska.NumClassCheckHook'),
    layout_check=dict(type='mmlska.LayoutCheckHook'),
    plugin_check=dict(type='mmlska.PluginCheckHook'),
    random_weights=dict(type='mmlska.RandomWeightsHook'),
    added_neck=dict(type='mmlska.AddedNeckHook'),
    new_parts=dict(type='mmlska.NewPartsHook'),
    measured_table=dict(type='mmlska.MeasuredTableHook'),
)

# Whole checkpoint files, signals that save, resuming that is exact: docs/reliability.md.
saving = dict(
    checkpoint=dict(type='mmlska.SafeCheckpointHook'),
    interruption=dict(type='mmlska.InterruptionHook'),
)
