# The paper's RetinaNet, as small as it can be, for a few iterations on the digit scenes.
_base_ = '../../configs/van_lska/retinanet_van-lska-tiny_fpn_1x_coco.py'

root = 'data/digit_scenes/'
classes = dict(classes=tuple('0123456789'))
dims = [8, 16, 24, 32]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmlska.VAN',
        arch=dict(embed_dims=dims, depths=[1] * 4, ffn_ratios=[2] * 4),
        attention=dict(type='LSKA', kernel_size=7),
    ),
    neck=dict(in_channels=dims, out_channels=16),
    bbox_head=dict(num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0, max_per_img=10),
)

load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_pipeline = [*load, dict(type='PackDetInputs')]
test_pipeline = [*load, dict(type='PackDetInputs', meta_keys=keys)]


def split(name, pipeline):
    return dict(
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            data_root=root,
            metainfo=classes,
            ann_file=f'annotations/instances_{name}.json',
            data_prefix=dict(img=f'images/{name}/'),
            pipeline=pipeline,
        ),
    )


train_dataloader = split('train', train_pipeline)
val_dataloader = split('val', test_pipeline)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

iterations = 2
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations
)
param_scheduler = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=iterations))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
