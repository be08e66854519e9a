_base_ = './ade20k.py'

# The VAN authors test at sides that are multiples of 32.
to_multiple = dict(type='ResizeToMultiple', size_divisor=32)
load, resize, *rest = _base_.test_pipeline
test_pipeline = [load, resize, to_multiple, *rest]
load, augment = _base_.tta_pipeline
scales, *rest = augment['transforms']
tta_pipeline = [load, dict(augment, transforms=[scales, [to_multiple], *rest])]
del to_multiple, load, resize, augment, scales, rest

val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
