# Settings that go on top of any recipe, one line for each. mmengine takes no key from two bases, so
# that each option is a variable of its own. docs/training_options.md tells what they do and need.
#
#     _base_ = ['PATH/TO/A/RECIPE.py', 'PATH/TO/configs/_base_/training_options.py']
#     _base_.merge(_base_.bf16)
#     _base_.merge(_base_.with_cp)

# bfloat16 has the range of float32, so that the loss needs no scaling.
bf16 = dict(
    optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False)),
    default_hooks=dict(float32_boxes=dict(type='mmlska.Float32BoxesHook')),
)

fused_optimizer = dict(optim_wrapper=dict(optimizer=dict(fused=True)))

with_cp = dict(model=dict(backbone=dict(with_cp=True)))

# For each GPU; half of the workers where nothing is augmented.
loading = dict(
    train_dataloader=dict(
        num_workers=8, persistent_workers=True, pin_memory=True, prefetch_factor=4
    ),
    val_dataloader=dict(num_workers=4, persistent_workers=True, pin_memory=True),
    test_dataloader=dict(num_workers=4, persistent_workers=True, pin_memory=True),
)

# Detectors only: the data preprocessor of mmseg has no such option.
non_blocking = dict(model=dict(data_preprocessor=dict(non_blocking=True)))

# Detectors that are evaluated by COCO's rules only.
faster_coco = dict(
    val_evaluator=dict(type='mmlska.FasterCocoMetric'),
    test_evaluator=dict(type='mmlska.FasterCocoMetric'),
)
