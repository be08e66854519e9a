_base_ = './adamw_80k_ade20k.py'

# The VAN authors' recipe: twice the cards, so twice the rate and half the iterations.
optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_cfg = dict(max_iters=40000, val_interval=4000)
param_scheduler = [dict(_base_.param_scheduler[0], end=train_cfg['max_iters'])]
default_hooks = dict(checkpoint=dict(interval=train_cfg['val_interval']))
auto_scale_lr = dict(base_batch_size=32)
