# What all tasks share; kernel size and drop path are the LSKA authors'. The kernel size, 23, is
# LSKA's default and not stated here: an attention of another type named over this one would
# inherit it. There is no init_cfg, for no address holds their weights that a script could fetch: as
# it stands a model starts from random weights, and the READMEs tell how to give it a file.
van_lska_defaults = dict(
    type='mmlska.VAN',
    arch='tiny',
    attention=dict(type='LSKA'),
    drop_path_rate=0.1,
)
