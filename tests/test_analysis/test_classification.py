import cv2
import numpy as np
import pytest

pytest.importorskip('imagecorruptions')

from mmlska.analysis.classification import (
    classification_errors,
    classify_files,
    cue_decisions,
    folder_accuracy,
    load_classifier,
    read_class_names,
)
from mmlska.analysis.robustness import mean_corruption_error

# Images of one grey value each, which tells their class.
VALUES = (40, 100, 160, 220)


def by_brightness(images):
    """A classifier: the nearest of the values."""
    means = np.array([image.mean() for image in images])
    return -np.abs(means[:, None] - np.array(VALUES))


def flat(value):
    return np.full((40, 40, 3), value, np.uint8)


def test_severity_0_is_the_clean_error():
    images = [flat(value) for value in VALUES]
    errors = classification_errors(by_brightness, images, [0, 1, 2, 0], ['fog'], [0])
    assert errors == dict(fog={0: 25.0})


def test_errors_are_those_of_corrupted_images():
    """Brightness adds half of the range at severity 5, contrast moves no mean."""
    images = [flat(value) for value in VALUES]
    errors = classification_errors(
        by_brightness, images, range(4), ['brightness', 'contrast'], [1, 5]
    )
    # 40 + 127 is nearest to 160, 100 + 127 to 220; the last two keep or pass 220.
    assert errors['brightness'][5] == 75.0
    assert errors['contrast'] == {1: 0.0, 5: 0.0}
    assert mean_corruption_error(dict(contrast=list(errors['contrast'].values()))) == 0


@pytest.mark.parametrize(('images', 'labels'), [([], []), ([flat(1)], [0, 1])])
def test_every_image_has_a_label(images, labels):
    with pytest.raises(ValueError, match='every image has a label'):
        classification_errors(by_brightness, images, labels, ['fog'], [1])


def test_a_classifier_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r'1 images to scores \(1, classes\), this one to \(7,\)'):
        classification_errors(lambda _: np.zeros(7), [flat(1)], [0], ['fog'], [1])


@pytest.fixture
def folder(tmp_path):
    """Images of the classes b and d of four; one of b looks like c, which the folder lacks."""
    for name, values in dict(b=(100, 160), d=(220,)).items():
        (tmp_path / 'set' / name).mkdir(parents=True)
        for value in values:
            cv2.imwrite(str(tmp_path / 'set' / name / f'{value}.png'), flat(value))
    return tmp_path / 'set'


def test_only_classes_of_the_folder_can_be_answered(folder):
    found = folder_accuracy(by_brightness, folder, 'abcd')
    # 160 lies in the middle between 100 and 220, and the first of both wins.
    assert (found.accuracy, found.images, found.classes) == (100.0, 3, 2)
    (folder / 'c').mkdir()
    cv2.imwrite(str(folder / 'c' / 'x.png'), flat(160))
    assert folder_accuracy(by_brightness, folder, 'abcd').accuracy == 75.0


@pytest.mark.parametrize(
    ('names', 'error', 'message'),
    [
        (['a', 'bb', 'c', 'd'], ValueError, "no class, such as 'b'"),
        (['a', 'b', 'd'], ValueError, 'has 4 outputs, 3 class names'),
    ],
)
def test_names_that_do_not_fit_are_told(folder, names, error, message):
    with pytest.raises(error, match=message):
        folder_accuracy(by_brightness, folder, names)


def test_a_folder_without_images_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no folder of images'):
        folder_accuracy(by_brightness, tmp_path, 'abcd')
    with pytest.raises(FileNotFoundError, match='no folder'):
        folder_accuracy(by_brightness, tmp_path / 'absent', 'abcd')


def test_class_names_come_from_folders_or_lines(tmp_path):
    for name in ('n02', 'n01'):
        (tmp_path / 'train' / name).mkdir(parents=True)
    assert read_class_names(tmp_path / 'train') == ['n01', 'n02']
    file = tmp_path / 'names.txt'
    file.write_text('n02 goldfish\n\nn01 tench\n')
    assert read_class_names(file) == ['n02', 'n01']
    file.write_text('n02\nn02\n')
    with pytest.raises(ValueError, match='one twice'):
        read_class_names(file)
    with pytest.raises(FileNotFoundError, match='absent'):
        read_class_names(tmp_path / 'absent')


def test_files_are_classified_in_their_order(folder):
    files = [folder / 'd' / '220.png', folder / 'b' / '100.png']
    assert classify_files(by_brightness, files).argmax(1).tolist() == [3, 1]


# Decisions where cues disagree

CATEGORIES = dict(cat=[0, 1], car=[2], cup=[3])


def test_a_decision_is_the_category_of_the_highest_mean():
    probabilities = np.array(
        [
            [0.5, 0.1, 0.2, 0.2],  # cat: 0.3
            [0.4, 0.0, 0.35, 0.25],  # car: one class of cat is higher, its mean is not
            [0.0, 0.0, 0.2, 0.8],  # cup: neither shape nor texture
            [0.9, 0.1, 0.0, 0.0],  # the cues agree
        ]
    )
    found = cue_decisions(
        probabilities, ['cat', 'cat', 'cat', 'cat'], ['car', 'car', 'car', 'cat'], CATEGORIES
    )
    assert (found.shape, found.texture, found.images) == (1, 1, 3)
    assert found.share_of_shape == 0.5
    assert found.by_category == dict(cat=(1, 1))


@pytest.mark.parametrize(('followed', 'share'), [('shape', 1.0), ('texture', 0.0)])
def test_a_classifier_of_one_cue_has_its_share(followed, share):
    rng = np.random.default_rng(0)
    names = list(CATEGORIES)
    cues = [rng.choice(names, 2, replace=False) for _ in range(50)]
    shapes, textures = zip(*cues, strict=True)
    answers = shapes if followed == 'shape' else textures
    probabilities = np.zeros((50, 4))
    for row, answer in zip(probabilities, answers, strict=True):
        row[CATEGORIES[answer]] = 1
    found = cue_decisions(probabilities, shapes, textures, CATEGORIES)
    assert found.share_of_shape == share and found.images == 50


@pytest.mark.parametrize(
    ('categories', 'message'),
    [
        (dict(cat=[0], cup=[3]), "no category 'car'"),
        (dict(CATEGORIES, cat=[4]), "'cat' needs outputs from 0 to 3"),
        (dict(CATEGORIES, cup=[]), "'cup' needs outputs"),
    ],
)
def test_categories_that_do_not_fit_are_told(categories, message):
    with pytest.raises(ValueError, match=message):
        cue_decisions(np.ones((1, 4)), ['cat'], ['car'], categories)


def test_every_image_has_both_cues():
    with pytest.raises(ValueError, match='every image'):
        cue_decisions(np.ones((1, 4)), ['cat'], [], CATEGORIES)


def test_a_detector_is_no_classifier(tmp_path):
    pytest.importorskip('mmdet')
    weights = tmp_path / 'any.pth'
    weights.touch()
    with pytest.raises(ValueError, match='a config of mmdet, not of a classifier'):
        load_classifier('retinanet_van-lska-tiny_fpn_1x_coco', str(weights))
