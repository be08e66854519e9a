import pytest
from mmengine.registry import MODELS, DefaultScope

from mmlska.engine.config import load_config
from mmlska.engine.onnx_metadata import describe_model, fixed_size

META = dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)])


def told_of(name, **changes):
    """What a file would tell of a config whose test pipeline or preprocessor is changed."""
    cfg = load_config(name)
    pytest.importorskip(f'{cfg.default_scope}.models')
    if 'pipeline' in changes:
        pipeline = cfg.test_dataloader.dataset.pipeline
        cfg.test_dataloader.dataset.pipeline = [pipeline[0], *changes.pop('pipeline'), pipeline[-1]]
    cfg.model.merge(changes)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    return describe_model(cfg, name, model, META, end_to_end=True)


SEGMENTOR = 'fpn_van-lska-pico_demo_digits-64x64'
DETECTOR = 'retinanet_van-lska-pico_fpn_demo_digits-64x64'


def test_a_segmentor_tells_all_that_preparing_an_image_needs():
    told = told_of(SEGMENTOR, test_cfg=dict(mode='slide', crop_size=(48, 40), stride=(32, 24)))
    assert told['task'] == 'semantic segmentation'
    assert told['classes'] == ['a', 'b'] and told['palette'] == [[1, 2, 3], [4, 5, 6]]
    assert told['channel_order'] == 'rgb' and told['mean'] == pytest.approx(
        [123.675, 116.28, 103.53]
    )
    assert told['window'] == dict(size=[48, 40], stride=[32, 24])
    assert told['pad_after'] == dict(size=None, divisor=1, value=0.0)
    assert fixed_size(told) == (48, 40)


def test_a_detector_tells_how_it_pads():
    steps = [
        dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        dict(type='Pad', size=(640, 320), pad_val=dict(img=(114, 114, 114))),
    ]
    told = told_of(DETECTOR, pipeline=steps)
    assert told['task'] == 'object detection'
    assert told['resize'] == [dict(scale=[1333, 800], keep_ratio=True)]
    assert told['pad'] == dict(size=[320, 640], divisor=1, square=False, value=114.0)
    assert fixed_size(told) == (320, 640)
    told = told_of(DETECTOR, pipeline=steps[:1], data_preprocessor=dict(pad_size_divisor=32))
    assert told['pad_after'] == dict(size=None, divisor=32, value=0.0)
    assert fixed_size(told) == (800, 1344)


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='RandomFlip', prob=0.5), 'has the step RandomFlip'),
        (dict(type='Resize', scale_factor=0.5), 'Resize has no scale'),
        (dict(type='Resize', scale=64, interpolation='nearest'), 'resizes nearest'),
        (dict(type='Pad', size=(64, 64), pad_val=dict(img=(1, 2, 3))), 'fills channels with'),
    ],
)
def test_what_a_file_cannot_tell_is_an_error(step, message):
    with pytest.raises(ValueError, match=message):
        told_of(SEGMENTOR, pipeline=[step])
