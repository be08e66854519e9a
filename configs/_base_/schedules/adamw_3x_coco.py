_base_ = './adamw_1x_coco.py'

# The papers say 36 epochs; the steps are MMDetection's for a schedule of that length.
train_cfg = dict(max_epochs=36)
warm_up, steps = _base_.param_scheduler
param_scheduler = [warm_up, dict(steps, end=train_cfg['max_epochs'], milestones=[27, 33])]
del warm_up, steps
