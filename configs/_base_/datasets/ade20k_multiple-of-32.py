_base_ = './ade20k.py'

# The VAN authors test at sides that are multiples of 32.
test_pipeline = list(_base_.test_pipeline)
test_pipeline.insert(2, dict(type='ResizeToMultiple', size_divisor=32))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
