_base_ = './adamw_80k_ade20k.py'

# MMSegmentation's recipe for ResNets.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [dict(_base_.param_scheduler[0], eta_min=1e-4)]
