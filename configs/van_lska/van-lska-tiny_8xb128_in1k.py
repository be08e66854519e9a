_base_ = [
    '../_base_/models/van-lska_classifier.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_310e_in1k.py',
    '../_base_/cls_runtime.py',
]
