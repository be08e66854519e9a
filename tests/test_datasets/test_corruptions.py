import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, DefaultScope

pytest.importorskip('imagecorruptions')

from mmlska.datasets import corruptions
from mmlska.datasets.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    SEVERITIES,
    CorruptImage,
    choose_corruptions,
    corrupt,
)

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
SMALL = NOISE[:9, :7]


def test_the_names_are_those_of_the_library_in_its_order():
    from imagecorruptions import get_corruption_names

    assert list(BENCHMARK) == get_corruption_names('common')
    assert list(CORRUPTIONS) == get_corruption_names('all')


@pytest.mark.parametrize('corruption', CORRUPTIONS)
@pytest.mark.parametrize(
    'image',
    [NOISE, SMALL, NOISE[..., 0], NOISE[..., :1]],
    ids=['colour', 'small', 'grey', 'one band'],
)
def test_a_corruption_depends_on_its_arguments_alone(corruption, image):
    before = image.copy()
    np.random.seed(1)
    first = corrupt(image, corruption, 3)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    again = corrupt(image, corruption, 3)
    assert np.array_equal(np.random.get_state()[1], state)
    assert np.array_equal(first, again)
    assert np.array_equal(image, before)
    assert first.shape == image.shape and first.dtype == np.uint8


@pytest.mark.parametrize('corruption', CORRUPTIONS)
def test_severity_0_is_the_image_and_the_others_change_it(corruption):
    assert np.array_equal(corrupt(NOISE, corruption, 0), NOISE)
    # Slopes instead of noise, on which all corruptions are seen.
    image = cv2.resize(NOISE[:6, :6], (45, 40), interpolation=cv2.INTER_CUBIC)
    for severity in SEVERITIES:
        assert not np.array_equal(corrupt(image, corruption, severity), image), severity


@pytest.mark.parametrize('corruption', ['gaussian_noise', 'impulse_noise', 'glass_blur', 'fog'])
def test_images_and_seeds_have_noise_of_their_own(corruption):
    other = NOISE.copy()
    other[0, 0, 0] ^= 1
    found = corrupt(NOISE, corruption, 3).astype(int)
    assert np.abs(found - corrupt(other, corruption, 3))[1:].max() > 5
    assert np.abs(found - corrupt(NOISE, corruption, 3, seed=1)).max() > 5


def test_noise_has_the_spread_of_the_benchmark():
    image = np.full((200, 200, 3), 128, np.uint8)
    deviations = [corrupt(image, 'gaussian_noise', s).astype(float).std() / 255 for s in (1, 2)]
    assert deviations == pytest.approx([0.08, 0.12], rel=0.02)


def test_contrast_is_pulled_to_the_mean_by_the_factor_of_the_benchmark():
    found = corrupt(NOISE, 'contrast', 1).astype(float)
    mean = NOISE.mean((0, 1))
    assert np.abs(found - ((NOISE - mean) * 0.4 + mean)).max() <= 1


@pytest.mark.parametrize('severity', SEVERITIES)
def test_an_image_without_a_drop_is_no_black_one(severity):
    """Its library divides zero by zero there."""
    for number in range(20):
        image = np.full((8, 8, 3), 100 + number, np.uint8)
        assert corrupt(image, 'spatter', severity).min() > 0


def test_a_small_image_is_the_corner_of_its_reflection():
    wide = np.pad(SMALL, ((0, 23), (0, 25), (0, 0)), mode='symmetric')
    assert wide.shape == (32, 32, 3)
    assert np.array_equal(corrupt(SMALL, 'fog', 2), corrupt(wide, 'fog', 2)[:9, :7])


def test_a_grey_image_stays_the_grey_of_its_colours():
    grey = NOISE[..., 0]
    colour = corrupt(np.stack([grey] * 3, -1), 'contrast', 2)
    assert np.abs(corrupt(grey, 'contrast', 2).astype(int) - colour[..., 0]).max() <= 1


@pytest.mark.parametrize(
    ('image', 'corruption', 'severity', 'error', 'message'),
    [
        (NOISE, 'gausian_noise', 1, ValueError, 'did you mean gaussian_noise?'),
        (NOISE, 'fog', 6, ValueError, 'from 0 .clean. to 5, got 6'),
        (NOISE.astype(float), 'fog', 1, TypeError, 'uint8, got float64'),
        (np.zeros((9, 9, 4), np.uint8), 'fog', 1, ValueError, r'got \(9, 9, 4\)'),
        (np.zeros((0, 9, 3), np.uint8), 'fog', 1, ValueError, 'a pixel at least'),
        ([[0]], 'fog', 1, TypeError, 'got list'),
    ],
)
def test_what_cannot_be_corrupted_is_told(image, corruption, severity, error, message):
    with pytest.raises(error, match=message):
        corrupt(image, corruption, severity)


def test_a_library_that_fails_is_named_with_its_remedy(monkeypatch):
    from imagecorruptions import corruption_dict

    def uses_what_numpy_lacks(*_):
        raise AttributeError('`np.float_` was removed in the NumPy 2.0 release')

    monkeypatch.setitem(corruption_dict, 'fog', uses_what_numpy_lacks)
    with pytest.raises(RuntimeError, match=r'fog of imagecorruptions-imaug .* fails .*analysis'):
        corrupt(NOISE, 'fog', 1)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(corruptions, 'DISTRIBUTIONS', ('no-such-distribution',))
    with pytest.raises(ImportError, match=r"pip install 'mmlska\[analysis\]'"):
        corrupt(NOISE, 'fog', 1)


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['benchmark'], list(BENCHMARK)),
        (['all'], list(CORRUPTIONS)),
        (['fog', 'noise'], ['gaussian_noise', 'shot_noise', 'impulse_noise', 'fog']),
        (['extra', 'saturate'], ['speckle_noise', 'gaussian_blur', 'spatter', 'saturate']),
    ],
)
def test_corruptions_are_chosen_by_name_and_group(names, expected):
    assert choose_corruptions(names) == expected


@pytest.mark.parametrize('names', [['wether'], []])
def test_a_choice_of_nothing_is_refused(names):
    with pytest.raises(ValueError, match='weather'):
        choose_corruptions(names)


# The step of a pipeline


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
def test_the_step_is_built_by_name_in_every_scope(scope):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        step = TRANSFORMS.build(dict(type='mmlska.CorruptImage', corruption='fog', severity=1))
    assert isinstance(step, CorruptImage)
    assert "'fog', 1" in repr(step)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('order', ['bgr', 'rgb'])
def test_the_step_hands_the_library_rgb(order, dtype):
    """Frost has a colour of its own, which a wrong order of the channels would change."""
    flip = -1 if order == 'bgr' else 1
    loaded = np.ascontiguousarray(NOISE[..., ::flip], dtype)
    found = CorruptImage('frost', 3, order)(dict(img=loaded, img_path='a.jpg'))['img']
    assert found.dtype == dtype and found.flags.c_contiguous
    assert np.array_equal(found[..., ::flip], corrupt(NOISE, 'frost', 3))


def test_severity_0_of_the_step_leaves_anything_alone():
    image = np.zeros((5, 5, 7), np.float32)
    assert CorruptImage('fog', 0)(dict(img=image))['img'] is image


@pytest.mark.parametrize('image', [np.full((40, 40, 3), 0.5), np.zeros((40, 40, 7), np.uint8)])
def test_the_step_names_the_file_that_cannot_be_corrupted(image):
    with pytest.raises(ValueError, match=r'some/file\.tif: '):
        CorruptImage('fog', 1)(dict(img=image, img_path='some/file.tif'))


@pytest.mark.parametrize('arguments', [('fogg', 1), ('fog', -1), ('fog', 1, 'brg')])
def test_a_wrong_step_is_refused(arguments):
    with pytest.raises(ValueError, match=r'fog|severity|bgr'):
        CorruptImage(*arguments)
