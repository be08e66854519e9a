_base_ = './retinanet_van-lska-nano_fpn_demo_digits.py'

# The detector beside fpn_van-lska-pico_demo_digits-64x64.py: the same backbone on the same scenes.
embed_dims = [16, 32, 64, 96]
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        arch=dict(embed_dims=embed_dims, depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2]),
        patch_sizes=(3, 3, 3, 3),
    ),
    neck=dict(in_channels=embed_dims, out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(strides=[4, 8, 16])),
)

data_root = 'data/digit_scenes_64/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# Scenes this small are read faster than a worker hands them over.
in_this_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, pipeline=train_pipeline), **in_this_process
)
val_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, pipeline=test_pipeline), **in_this_process
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
