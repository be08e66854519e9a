# The backbone of all demos. Few wide blocks, as the number of calls is what costs on a CPU. The
# layer scale starts ten times higher than in the paper: from scratch it has only minutes to grow.
backbone = dict(
    type='mmlska.VAN',
    arch=dict(embed_dims=[24, 48, 96, 160], depths=[1, 2, 2, 1], ffn_ratios=[4, 4, 4, 4]),
    attention=dict(type='LSKA'),
    layer_scale_init_value=0.1,
)
# For necks and heads: from scratch they need a norm, and four scenes are few for batch statistics.
head_norm_cfg = dict(type='GN', num_groups=8)
