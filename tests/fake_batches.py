"""Two images of noise with annotations, as the models of each library take them."""

import torch


def fake_batch(scope: str, num_classes: int, side: int = 64, with_mask: bool = False) -> dict:
    """A batch for a model of the library.

    Boxes are horizontal for mmdet and turned for mmrotate; mmseg gets a label for each pixel,
    mmpretrain one for each image.
    """
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        shapes = [(3, side, side)] * 2
        return demo_mm_inputs(2, shapes, num_classes=num_classes, with_mask=with_mask)
    if scope == 'mmrotate':
        from mmrotate.testing import demo_mm_inputs

        shapes = [(3, side, side)] * 2
        return demo_mm_inputs(2, shapes, num_classes=num_classes, use_box_type=True)
    images = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(2)]
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(label) for label in (3, 7)]
        return dict(inputs=images, data_samples=samples)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.randint(0, num_classes, (2, 1, side, side))
    shape = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (side, side))
    samples = [SegDataSample(metainfo=shape, gt_sem_seg=PixelData(data=label)) for label in labels]
    return dict(inputs=images, data_samples=samples)
