import numpy as np
import pytest

from mmlska.analysis.texture_probe import nearest_neighbour_accuracy, read_dtd

NAMES = ('banded', 'dotted')


@pytest.fixture
def root(tmp_path):
    """Two textures with an image in each of the lists of split 2."""
    (tmp_path / 'labels').mkdir()
    for part in ('train', 'val', 'test'):
        lines = [f'{name}/{name}_{part}.jpg' for name in NAMES]
        (tmp_path / 'labels' / f'{part}2.txt').write_text('\n'.join(lines) + '\n')
        for line in lines:
            (tmp_path / 'images' / line).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / 'images' / line).touch()
    return tmp_path


def test_train_and_val_are_known_and_test_is_asked_for(root):
    split = read_dtd(root, 2)
    assert [file.name for file in split.known] == [
        'banded_train.jpg',
        'dotted_train.jpg',
        'banded_val.jpg',
        'dotted_val.jpg',
    ]
    assert split.known_names == [*NAMES, *NAMES]
    assert split.asked == [root / 'images' / n / f'{n}_test.jpg' for n in NAMES]
    assert split.asked_names == list(NAMES)


def test_what_is_missing_is_named(root):
    with pytest.raises(ValueError, match='splits 1 to 10, got 11'):
        read_dtd(root, 11)
    with pytest.raises(FileNotFoundError, match=r'train1\.txt'):
        read_dtd(root, 1)
    (root / 'images' / 'banded' / 'banded_val.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 images are missing, .*banded_val'):
        read_dtd(root, 2)
    (root / 'labels' / 'test2.txt').write_text('\n')
    with pytest.raises(ValueError, match='empty'):
        read_dtd(root, 2)


def test_features_of_textures_apart_are_all_told_and_mixed_ones_are_not():
    pytest.importorskip('sklearn')
    rng = np.random.default_rng(0)
    centres = {name: 100.0 * i for i, name in enumerate(NAMES)}
    known_names, asked_names = list(NAMES) * 10, list(NAMES) * 4
    known, asked = (
        np.array([[centres[name]] * 3 for name in names]) + rng.normal(size=(len(names), 3))
        for names in (known_names, asked_names)
    )
    assert nearest_neighbour_accuracy(known, known_names, asked, asked_names) == 100
    # A quarter of the questions carries the other name.
    swapped = [*asked_names[1::-1], *asked_names[2:]]
    assert nearest_neighbour_accuracy(known, known_names, asked, swapped) == 75


def test_features_without_a_name_are_refused():
    with pytest.raises(ValueError, match='got 2 and 1'):
        nearest_neighbour_accuracy(np.ones((2, 3)), ['a'], np.ones((1, 3)), ['a'])
