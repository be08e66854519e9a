# What detection and segmentation share. The kernel size and the drop path are the LSKA paper's.
van_lska_defaults = dict(
    type='mmlska.VAN',
    arch='tiny',
    attention=dict(type='LSKA', kernel_size=23),
    drop_path_rate=0.1,
)
