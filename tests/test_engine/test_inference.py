from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmlska.deploy import is_fused
from mmlska.engine.config import load_config
from mmlska.engine.inference import (
    Predictor,
    UnreadableImageError,
    channel_order,
    classes_of,
    displayable,
    find_device,
    known_classes,
    read_image,
    split_pipeline,
    takes_frames,
    with_palette,
)

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
DETECTOR, SEGMENTOR = CONFIGS / 'small_retinanet.py', CONFIGS / 'small_fpn.py'


def save_untrained(config: Path, path, **meta) -> str:
    """Weights of a freshly built model, as a training run would save them."""
    from mmengine.registry import MODELS, init_default_scope

    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    torch.save(dict(meta=meta, state_dict=MODELS.build(cfg.model).state_dict()), path)
    return str(path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'noise.png'), noise)
    (folder / 'broken.jpg').write_bytes(b'no image at all')
    (folder / 'empty.png').touch()
    (folder / 'notes.txt').write_text('not an image')
    return folder


@pytest.fixture(scope='module')
def detector(folder):
    pytest.importorskip('mmdet')
    return Predictor(DETECTOR, save_untrained(DETECTOR, folder / 'detector.pth'), 'cpu')


@pytest.fixture(scope='module')
def fused_detector(detector, folder):
    return Predictor(DETECTOR, str(folder / 'detector.pth'), 'cpu', fused=True)


@pytest.fixture(scope='module')
def segmentor(folder):
    pytest.importorskip('mmseg')
    return Predictor(SEGMENTOR, save_untrained(SEGMENTOR, folder / 'segmentor.pth'), 'cpu')


def test_an_image_is_read_as_rgb(tmp_path):
    path = tmp_path / 'red.png'
    cv2.imwrite(str(path), np.full((4, 5, 3), (0, 0, 255), np.uint8))
    assert (read_image(path) == (255, 0, 0)).all()
    assert read_image(path).shape == (4, 5, 3)


@pytest.mark.parametrize('name', ['broken.jpg', 'empty.png'])
def test_an_unreadable_image_is_named(folder, name):
    with pytest.raises(UnreadableImageError, match=f'{name}. cannot be read as an image'):
        read_image(folder / name)


@pytest.mark.parametrize('device', ['cuda:99', 'nonsense'])
def test_an_absent_device_is_named(device):
    with pytest.raises(ValueError, match=f'--device {device}: not on this machine'):
        find_device(device)


def test_the_checkpoint_of_another_model_is_refused(folder, detector, segmentor):
    with pytest.raises(ValueError, match=r'detector\.pth. is not of this EncoderDecoder:'):
        Predictor(SEGMENTOR, str(folder / 'detector.pth'), 'cpu')


def test_a_damaged_checkpoint_is_refused(tmp_path):
    pytest.importorskip('mmdet')
    path = tmp_path / 'damaged.pth'
    path.write_bytes(b'PK\x03\x04 cut off')
    with pytest.raises(ValueError, match=r'damaged\.pth'):
        Predictor(DETECTOR, str(path), 'cpu')


def test_a_config_of_another_task_is_refused(folder, tmp_path):
    config = tmp_path / 'other.py'
    config.write_text("default_scope = 'mmengine'")
    (tmp_path / 'any.pth').touch()
    with pytest.raises(ValueError, match='a config of mmengine; pictures are drawn for detectors'):
        Predictor(config, str(tmp_path / 'any.pth'), 'cpu')


def test_a_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file 'absent\.pth'"):
        Predictor(DETECTOR, 'absent.pth', 'cpu')


def test_classes_come_from_the_checkpoint_or_else_from_the_config(folder, detector):
    assert detector.visualizer.dataset_meta['classes'] == tuple('0123456789')
    letters = tuple('ABCDEFGHIJ')
    path = save_untrained(DETECTOR, folder / 'letters.pth', dataset_meta=dict(classes=letters))
    assert Predictor(DETECTOR, path, 'cpu').visualizer.dataset_meta['classes'] == letters


def test_classes_without_colours_get_distinct_ones(segmentor):
    palette = segmentor.visualizer.dataset_meta['palette']
    assert len(set(palette)) == 11
    given = dict(classes=('a',), palette=[(1, 2, 3)])
    assert with_palette(given) == given


def test_a_prediction_has_the_size_of_the_image(folder, segmentor):
    prediction = segmentor(folder / 'noise.png')
    assert prediction.pred_sem_seg.data.shape == (1, 96, 128)


def test_the_same_image_gives_the_same_detections(folder, detector):
    first, second = (detector(folder / 'noise.png').pred_instances for _ in range(2))
    assert torch.equal(first.bboxes, second.bboxes) and torch.equal(first.scores, second.scores)


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_a_frame_is_predicted_and_drawn_as_the_file_that_holds_it(kind, folder, request):
    predictor = request.getfixturevalue(kind)
    frame = cv2.imread(str(folder / 'noise.png'))
    of_file, of_frame = predictor(folder / 'noise.png'), predictor(frame)
    if kind == 'detector':
        assert torch.equal(of_file.pred_instances.bboxes, of_frame.pred_instances.bboxes)
    else:
        assert torch.equal(of_file.pred_sem_seg.data, of_frame.pred_sem_seg.data)
    pictures = [
        predictor.draw(image, prediction, score_thr=0)
        for image, prediction in ((folder / 'noise.png', of_file), (frame, of_frame))
    ]
    assert (pictures[0] == pictures[1]).all() and pictures[0].shape == frame.shape


def test_frames_are_for_configs_that_only_decode_an_image(detector, monkeypatch):
    load = dict(type='LoadImageFromFile')
    assert takes_frames([load])
    for steps in (
        [load, dict(type='LoadDepth')],
        [dict(type='LoadBands')],
        [dict(load, to_float32=True)],
        [dict(load, color_type='grayscale')],
        [dict(load, imdecode_backend='tifffile')],
    ):
        assert not takes_frames(steps)
    monkeypatch.setattr(detector, 'takes_frames', False)
    with pytest.raises(ValueError, match='a frame of a video cannot take the place'):
        detector(np.zeros((8, 8, 3), np.uint8))


def test_a_fused_detector_gives_the_same_detections(folder, detector, fused_detector):
    plain, fused = (d(folder / 'noise.png').pred_instances for d in (detector, fused_detector))
    assert is_fused(fused_detector.model) and not is_fused(detector.model)
    assert torch.allclose(plain.bboxes, fused.bboxes, atol=1e-3)
    assert torch.allclose(plain.scores, fused.scores, atol=1e-5)


def detection(score: float):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    instances = InstanceData(
        bboxes=torch.tensor([[70.0, 40.0, 110.0, 80.0]]),
        labels=torch.tensor([7]),
        scores=torch.tensor([score]),
    )
    return DetDataSample(pred_instances=instances)


def nothing_detected():
    prediction = detection(0.9)
    prediction.pred_instances = prediction.pred_instances[:0]
    return prediction


def drawn(detector, image, prediction, out_file, **options):
    detector.draw(image, prediction, out_file, **options)
    return read_image(out_file)


def test_a_box_is_drawn_where_it_is(folder, detector, tmp_path):
    image, out_file = folder / 'noise.png', tmp_path / 'new' / 'drawn.png'
    # Not with the file: a figure of matplotlib before 3.11 shifts an image by part of a pixel.
    blank = drawn(detector, image, nothing_detected(), out_file)
    changed = (drawn(detector, image, detection(0.9), out_file) != blank).any(-1)
    assert changed[40:80, 68:73].all(1).any() and changed[40:80, 108:113].all(1).any()
    assert not changed[:, :60].any() and not changed[:30].any()


def test_a_box_up_to_the_border_is_drawn_without_a_warning(folder, detector, recwarn):
    prediction = detection(0.9)
    prediction.pred_instances.bboxes = torch.tensor([[70.0, 40.0, 128.0, 96.0]])
    detector.draw(folder / 'noise.png', prediction)
    assert not [warning for warning in recwarn if 'out of bounds' in str(warning.message)]


def test_a_detection_below_the_threshold_is_not_drawn(folder, detector, tmp_path):
    image, out_file = folder / 'noise.png', tmp_path / 'drawn.png'
    blank = drawn(detector, image, nothing_detected(), out_file)
    assert np.abs(blank.mean((0, 1)) - read_image(image).mean((0, 1))).max() < 3
    below = drawn(detector, image, detection(0.4), out_file, score_thr=0.5)
    above = drawn(detector, image, detection(0.4), out_file, score_thr=0.3)
    assert (below == blank).all() and not (above == blank).all()


def test_segments_are_blended_with_the_image(folder, segmentor, tmp_path):
    image, out_file = folder / 'noise.png', tmp_path / 'drawn.png'
    prediction = segmentor(image)
    prediction.pred_sem_seg.data[:] = 5
    segmentor.draw(image, prediction, out_file)
    blend = segmentor.visualizer.alpha
    colour = np.array(segmentor.visualizer.dataset_meta['palette'][5])
    expected = read_image(image) * (1 - blend) + colour * blend
    corner = np.s_[:20, :20]
    np.testing.assert_allclose(read_image(out_file)[corner], expected[corner], atol=1)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1)])
def test_an_image_of_one_row_is_drawn(size, segmentor, tmp_path):
    image, out_file = tmp_path / 'image.png', tmp_path / 'out.png'
    cv2.imwrite(str(image), np.zeros((*size, 3), np.uint8))
    segmentor.draw(image, segmentor(image), out_file)
    assert cv2.imread(str(out_file)).shape == (*size, 3)


def test_a_prediction_is_told_in_words(detector, segmentor, folder):
    assert detector.describe(detection(0.9)) == '1 x 7'
    assert detector.describe(detection(0.2)) == 'nothing above a score of 0.3'
    prediction = segmentor(folder / 'noise.png')
    prediction.pred_sem_seg.data[:] = 0
    prediction.pred_sem_seg.data[:, :24] = 3
    assert segmentor.describe(prediction) == 'background 75 %, 2 25 %'


@pytest.mark.parametrize('bands', [1, 2, 3, 4, 6])
def test_bands_of_any_number_are_displayable(bands):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, bands), dtype=np.uint8)
    shown = displayable(pixels, 'rgb')
    expected = pixels[..., :3] if bands >= 3 else pixels[..., [0, 0, 0]]
    assert (shown == expected).all() and shown.dtype == np.uint8
    assert (displayable(pixels) == expected[..., ::-1]).all()


@pytest.mark.parametrize('scale', [1e-4, 40.0, 5000.0])
def test_values_that_are_no_bytes_are_spread(scale):
    pixels = np.linspace(-1, 1, 300, dtype=np.float32).reshape(10, 10, 3) * scale
    pixels[0, 0] = np.nan
    shown = displayable(pixels, 'rgb')
    assert shown.min() == 0 and shown.max() == 255
    assert (np.diff(shown.ravel()[3:].astype(int)) >= 0).all()
    assert (displayable(np.full((4, 4), np.nan)) == 0).all()


def test_the_pipeline_of_the_config_loads_the_image():
    load = dict(type='LoadImageFromFile', imdecode_backend='tifffile')
    steps = [load, dict(type='LoadAnnotations'), dict(type='mmdet.Resize'), dict(type='Pack')]
    loading, preparing = split_pipeline(steps)
    assert loading == [load] and preparing == steps[2:]
    assert channel_order(load) == 'rgb'
    assert channel_order(dict(type='LoadImageFromFile')) == 'bgr'
    with pytest.raises(ValueError, match='loads no image: its steps are Pack'):
        split_pipeline(steps[3:])


def test_segments_of_a_panoptic_map_are_told_in_words(detector):
    from mmengine.structures import BaseDataElement, PixelData

    ids = torch.tensor([[2, 2, 1002], [2002, 7, 10]])
    panoptic = BaseDataElement(pred_panoptic_seg=PixelData(sem_seg=ids[None]))
    assert detector.describe(panoptic) == '3 x 2, 1 x 7'


@pytest.mark.parametrize('label', [10, 7])
def test_a_panoptic_map_is_drawn_with_and_without_a_segment(label, detector, folder):
    from mmengine.structures import PixelData

    prediction = detection(0.9)
    ids = torch.full((1, 96, 128), label)
    prediction.pred_panoptic_seg = PixelData(sem_seg=ids)
    assert (detector.describe(prediction) == 'no segment') == (label == 10)
    drawn = detector.draw(folder / 'noise.png', prediction)
    without = detector.draw(folder / 'noise.png', detection(0.9))
    assert (drawn != without).any() == (label == 7)
    assert 'pred_panoptic_seg' in prediction


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        (dict(dataset_meta=dict(classes=['a', 'b'], palette=None)), dict(classes=['a', 'b'])),
        (dict(dataset_meta=dict(CLASSES=('a',))), dict(classes=('a',))),
        (dict(CLASSES=('a',), PALETTE=[(1, 2, 3)]), dict(classes=('a',), palette=[(1, 2, 3)])),
        (dict(dataset_meta=dict(palette=[(1, 2, 3)])), None),
        (dict(epoch=3), None),
        (dict(), None),
    ],
)
def test_a_checkpoint_of_any_age_tells_its_classes(meta, expected):
    assert known_classes(meta) == expected


def test_classes_may_stand_in_a_file(tmp_path):
    (tmp_path / 'names.txt').write_text('screw\nnut\n')
    dataset = dict(type='BaseDataset', metainfo=dict(classes=str(tmp_path / 'names.txt')))
    assert classes_of(dataset)['classes'] == ['screw', 'nut']


def test_a_single_name_is_one_class_and_a_short_palette_is_replaced():
    assert with_palette(dict(classes='screw'))['classes'] == ('screw',)
    short = with_palette(dict(classes=('a', 'b'), palette=[(1, 2, 3)]))['palette']
    assert len(short) == 2 and (1, 2, 3) not in short
    assert with_palette(dict(classes=('a', 'b'), palette='coco'))['palette'] == 'coco'
