# The backbone of all demos, 0.8 M parameters. On a CPU, wide and shallow learns more per second than
# narrow and deep. The layer scale starts ten times higher than in the paper, as a model from scratch
# has only minutes to grow it.
backbone = dict(
    type='mmlska.VAN',
    arch=dict(embed_dims=[24, 48, 96, 160], depths=[1, 2, 2, 1], ffn_ratios=[4, 4, 4, 4]),
    attention=dict(type='LSKA', kernel_size=23),
    layer_scale_init_value=0.1,
)
# For necks and heads. From scratch they need a norm, and four scenes are too few for batch statistics.
norm_cfg = dict(type='GN', num_groups=8)
