# What all tasks share; kernel size and drop path are the LSKA authors'. There is no init_cfg, for
# no address holds their weights that a script could fetch: as it stands a model starts from random
# weights, and the READMEs tell how to give it a file.
van_lska_defaults = dict(
    type='mmlska.VAN',
    arch='tiny',
    attention=dict(type='LSKA', kernel_size=23),
    drop_path_rate=0.1,
)
