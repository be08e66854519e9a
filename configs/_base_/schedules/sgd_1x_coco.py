_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# ECA-Net's detection recipe: 4 cards of 2 images, so half of MMDetection's rate.
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
