# The paper's Semantic FPN, as small as it can be, for a few iterations on the digit scenes.
_base_ = '../../configs/van_lska/fpn_van-lska-tiny_4xb4-80k_ade20k-512x512.py'

root = 'data/digit_scenes/'
classes = dict(classes=('background', *'0123456789'))
dims = [8, 16, 24, 32]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        _delete_=True,
        type='mmlska.VAN',
        arch=dict(embed_dims=dims, depths=[1] * 4, ffn_ratios=[2] * 4),
        attention=dict(type='LSKA', kernel_size=7),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    neck=dict(in_channels=dims, out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=11),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def split(name, batch_size):
    return dict(
        batch_size=batch_size,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            _delete_=True,
            type='BaseSegDataset',
            data_root=root,
            metainfo=classes,
            img_suffix='.png',
            data_prefix=dict(img_path=f'images/{name}', seg_map_path=f'labels/{name}'),
            pipeline=pipeline,
        ),
    )


train_dataloader = split('train', 2)
val_dataloader = split('val', 1)
test_dataloader = val_dataloader

iterations = 2
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=iterations))
randomness = dict(seed=0)
