"""The page to try models, but for the browser: which models, which files, which pictures."""

import io
import json
import re

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image
from trial_page import models, uploads
from trial_page.drawing import draw_fields, draw_gate, draw_prediction
from trial_page.results import Shown, render, render_error

from mmlska.analysis.attention_maps import Tile
from mmlska.analysis.before_after import AFTER, BEFORE, Findings
from mmlska.analysis.receptive_field import Field
from mmlska.checkpoint.own_models import own_models

PICO = 'fpn_van-lska-pico_demo_digits-64x64'
META = dict(classes=('background', 'cat', 'dog'), palette=[(0, 0, 0), (200, 0, 0), (0, 0, 200)])


# Models


@pytest.fixture
def no_zoo(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, 'own_models', lambda: {})


def test_with_no_model_it_says_what_to_run(no_zoo):
    with pytest.raises(models.NoModelError, match='run `make demo TASK=segmentation`'):
        models.list_models()


def test_models_of_the_zoo_are_grouped_by_kernel_size(no_zoo, monkeypatch, tmp_path):
    entries = {
        f'fpn_van-{kind.lower()}-k{size}-pico_digits': dict(
            file='a', sha256='b', config=PICO, dataset_meta={},
            options={'model.backbone.attention.type': f'mmlska.{kind}',
                     'model.backbone.attention.kernel_size': size},
        )
        for kind, size in (('LSKA', 35), ('LSKA', 7), ('LKA', 23))
    }  # fmt: skip
    (tmp_path / 'index.json').write_text(json.dumps(entries))
    monkeypatch.setattr(models, 'own_models', lambda: own_models(tmp_path))
    listed = models.list_models()
    assert [(model.family, model.kernel_size) for model in listed] == [
        ('fpn_van-lska-pico_digits', 7),
        ('fpn_van-lska-pico_digits', 35),
        ('fpn_van-lka-pico_digits', 23),
    ]
    assert listed[0].checkpoint == 'mmlska://fpn_van-lska-k7-pico_digits'
    assert listed[0].options['model.backbone.attention.kernel_size'] == 7


def test_models_that_are_named_come_first_and_are_told_apart(no_zoo, tmp_path):
    named = [(PICO, 'a/best.pth'), (PICO, 'b/best.pth')]
    folder = tmp_path / 'work_dirs' / 'demo_segmentation'
    (folder / 'train').mkdir(parents=True)
    (folder / 'segmentation.py').write_text("model = dict(backbone=dict(type='ResNet'))")
    (folder / 'train' / 'iter_9.pth').touch()
    (folder / 'train' / 'last_checkpoint').write_text(f'{folder}/train/iter_9.pth')
    # A training that is not finished has no checkpoint yet.
    (tmp_path / 'work_dirs' / 'demo_detection' / 'train').mkdir(parents=True)
    listed = models.list_models(named)
    assert [model.family for model in listed] == [
        f'{PICO}, a/best',
        f'{PICO}, b/best',
        'make demo: segmentation',
    ]
    # The default of LSKA, which the config does not state, and none in a ResNet.
    assert [model.kernel_size for model in listed] == [23, 23, None]


def test_a_config_that_does_not_exist_is_told(no_zoo):
    with pytest.raises(FileNotFoundError, match='did you mean'):
        models.list_models([('fpn_van-lska-pico_demo_digits', 'a.pth')])


# Uploads


def noise(width=40, height=30, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


def test_an_ordinary_picture_stays_as_it_is(tmp_path):
    Image.fromarray(noise()).save(tmp_path / 'a.png')
    with uploads.opened(tmp_path / 'a.png') as upload:
        np.testing.assert_array_equal(np.asarray(Image.open(upload.path)), noise())
        assert upload.size == (40, 30) and upload.notes == ()
    assert not upload.path.exists()


def test_transparent_parts_are_laid_on_white(tmp_path):
    pixels = noise(channels=4)
    pixels[:15, :, 3], pixels[15:, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    image, notes = uploads.read(tmp_path / 'a.png')
    assert (np.asarray(image)[:15] == 255).all()
    np.testing.assert_array_equal(np.asarray(image)[15:], pixels[15:, :, :3])
    assert notes == ['Transparent parts were laid on white.']


def test_sixteen_bits_are_spread(tmp_path):
    values = np.linspace(1000, 3000, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'a.png')
    image, notes = uploads.read(tmp_path / 'a.png')
    assert (np.asarray(image).min(), np.asarray(image).max()) == (0, 255)
    assert 'no bytes' in notes[0]


def test_other_colours_frames_and_orientations_are_told(tmp_path):
    Image.fromarray(noise(channels=4), 'CMYK').save(tmp_path / 'cmyk.jpg')
    frames = [Image.fromarray(noise()).quantize(), Image.new('P', (40, 30))]
    frames[0].save(tmp_path / 'moving.gif', save_all=True, append_images=frames[1:])
    upright = Image.Exif()
    upright[274] = 6
    Image.fromarray(noise()).save(tmp_path / 'turned.png', exif=upright)
    read = {path.name: uploads.read(path) for path in tmp_path.iterdir()}
    assert read['cmyk.jpg'][1] == ['CMYK was converted to RGB.']
    assert read['moving.gif'][1] == ['The first of 2 frames is shown.']
    assert read['turned.png'][0].size == (30, 40)
    assert all(image.mode == 'RGB' for image, _ in read.values())


def test_large_pictures_are_scaled_and_one_pixel_is_taken(tmp_path):
    Image.fromarray(noise(2666, 100)).resize((2666, 200)).save(tmp_path / 'large.jpg')
    image, notes = uploads.read(tmp_path / 'large.jpg')
    assert image.size == (1333, 100)
    assert notes == ['Scaled from 2666 × 200 to 1333 × 100.']
    Image.new('RGB', (1, 1), 'red').save(tmp_path / 'one.png')
    assert uploads.read(tmp_path / 'one.png')[0].size == (1, 1)


def encoded(image, kind='PNG'):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


BOMB = Image.new('1', (8000, 8000))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'no image at all', 'This is no image that is read here, whatever its name says'),
        (b'', 'This is no image'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'This is no image'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'This is no image'),
        (encoded(Image.fromarray(noise()))[:900], 'The image is damaged or cut off'),
        (encoded(Image.fromarray(noise()), 'JPEG')[:600], 'The image is damaged or cut off'),
        (encoded(BOMB), '8000 × 8000 pixels, 64 million; up to 50 million are taken'),
        (encoded(Image.new('1', (50, 1001))), 'one side may be up to 20 times'),
        (b'x' * (uploads.MAX_BYTES + 1), 'The file has 20 MB; up to 20 MB are taken'),
    ],
    ids=['text', 'empty', 'svg', 'eps', 'cut-png', 'cut-jpeg', 'pixels', 'strip', 'bytes'],
)
def test_what_is_no_image_is_refused_with_the_reason(content, message, tmp_path):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(uploads.UploadError, match=re.escape(message)):
        uploads.read(tmp_path / 'a.png')


# Pictures


def segments(labels):
    found = BaseDataElement()
    found.pred_sem_seg = PixelData(data=torch.tensor(labels)[None])
    return found


LABELS = np.zeros((10, 20), int)
LABELS[2:6, 4:8], LABELS[:, 18:] = 1, 2


def test_segments_are_coloured_and_named_in_their_middle():
    image = np.full((10, 20, 3), 100, np.uint8)
    picture, found = draw_prediction(image, segments(LABELS), META, 0.3)
    assert (picture.pixels[LABELS == 0] == 100).all()
    assert picture.pixels[3, 5].tolist() == [160, 40, 40]
    assert [(one.name, one.amount) for one in found] == [
        ('background', '82.0%'),
        ('dog', '10.0%'),
        ('cat', '8.0%'),
    ]
    assert {mark.label: mark.place for mark in picture.marks} == {
        'cat': (0.3, 0.4, 0, 0),
        'dog': (0.95, 0.5, 0, 0),
    }
    assert (image == 100).all()


def test_detections_above_the_score_are_framed():
    found = BaseDataElement()
    found.pred_instances = InstanceData(
        bboxes=torch.tensor([[2.0, 5, 12, 10], [0, 0, 20, 10]]),
        labels=torch.tensor([1, 2]),
        scores=torch.tensor([0.9, 0.2]),
        masks=torch.tensor(np.stack([LABELS == 1, LABELS == 2])),
    )
    image = np.zeros((10, 20, 3), np.uint8)
    picture, classes = draw_prediction(image, found, META, 0.3)
    (mark,) = picture.marks
    assert mark.label == 'cat 0.90'
    assert mark.place == (0.1, 0.5, 0.5, 0.5)
    assert (picture.pixels.any(-1) == (LABELS == 1)).all()
    assert [(one.name, one.amount) for one in classes] == [('cat', '1 ×')]


def test_other_predictions_are_refused():
    with pytest.raises(TypeError, match='no detections and no segments'):
        draw_prediction(np.zeros((4, 4, 3), np.uint8), BaseDataElement(), META, 0.3)


def field(name=AFTER, box=(0, 0, 11, 21)):
    contribution = np.zeros((11, 21))
    contribution[4:7, 9:12] = 1 / 9
    return Field(name, 2, 8, name, 1, contribution, box)


def test_fields_share_a_scale_and_show_their_squares():
    faint = field()
    spread = Field(BEFORE, 2, 8, BEFORE, 1, np.full((11, 21), 1 / 231), (3, 5, 8, 16))
    first, second = draw_fields([faint, spread])
    assert first.pixels[5, 10].sum() > second.pixels[5, 10].sum() > second.pixels[0, 0].sum() - 1
    assert [mark.label for mark in first.marks] == ['50%', '99%']
    np.testing.assert_allclose(first.marks[1].place, (9 / 21, 4 / 11, 3 / 21, 3 / 11))
    theory = second.marks[0]
    assert theory.is_dashed
    np.testing.assert_allclose(theory.place, (5 / 21, 3 / 11, 11 / 21, 5 / 11))


def test_gates_of_channels_are_bars():
    picture = draw_gate(Tile('a\nb', np.array([0.5, 1.0])))
    heights = (picture.pixels != picture.pixels[0, 0]).any(-1).sum(0)
    assert picture.pixels.shape == (96, 2, 3)
    assert heights.tolist() == [48, 96] or heights.tolist() == [48, 0]


# HTML


@pytest.fixture
def shown():
    gate = Tile('blocks1.0\nLSKA, -1 to 2', np.arange(12.0).reshape(3, 4))
    image = np.zeros((10, 20, 3), np.uint8)
    findings = (
        Findings(segments(LABELS), field(BEFORE), gate),
        Findings(segments(LABELS), field(AFTER), None),
    )
    meta = dict(META, classes=('background', '<cat>', 'dog'))
    return Shown(image, findings, meta, 0.3, ('<b>note</b>',), 1.25)


def test_six_figures_with_words_for_those_who_do_not_see_them(shown):
    html = render(shown)
    assert html.count('<figure>') == 6
    assert re.findall(r'alt="([^"]+)"', html) == [
        'Prediction before training', 'Receptive field before training', 'Gate before training',
        'Prediction after training', 'Receptive field after training',
    ]  # fmt: skip
    assert 'No layer of this model has a gate.' in html
    assert '50% within 3 px, 99% within 3 px, of 21 × 11 px' in html
    assert 'stage 3 (stride 8 px)' in html
    assert 'blocks1.0: LSKA, -1 to 2 over all channels' in html
    assert 'Computed in 1.2 s.' in html


def test_names_of_others_are_no_html(shown):
    html = render(shown)
    assert '<cat>' not in html and '&lt;cat&gt;' in html
    assert '&lt;b&gt;note&lt;/b&gt;' in html
    assert '&lt;script&gt;' in render_error('<script>')


def test_pictures_stand_in_the_page_itself(shown):
    sources = re.findall(r'src="([^"]+)"', render(shown))
    assert len(sources) == 5
    assert all(source.startswith('data:image/png;base64,') for source in sources)
    assert 'http' not in render(shown).replace('data:', '')
