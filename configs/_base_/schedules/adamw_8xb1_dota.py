# The optimizer of LSKNet's detectors on DOTA: 8 cards of 1 crop. Its rate is for that batch. A
# variable, since mmengine takes no key from two bases.
dota_optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
auto_scale_lr = dict(enable=False, base_batch_size=8)
