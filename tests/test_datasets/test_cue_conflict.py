import cv2
import numpy as np
import pytest

from mmlska.datasets.cue_conflict import (
    find_pictures,
    make_cue_conflict,
    pair_pictures,
    parse_name,
)


def test_a_name_tells_shape_and_texture():
    found = parse_name('airplane/airplane10-bicycle2.png')
    assert (found.shape, found.texture) == ('airplane', 'bicycle')
    assert (found.shape_instance, found.texture_instance) == ('airplane10', 'bicycle2')


@pytest.mark.parametrize('name', ['cat.png', 'cat-dog2.png', 'cat1_dog2.png', 'cat1-dog2-cow3.png'])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=r'airplane1-bicycle2\.png'):
        parse_name(name)


def names(*stems):
    return [parse_name(f'{stem}.png') for stem in stems]


def as_sets(pairs):
    return {frozenset(pair) for pair in pairs.tolist()}


def test_pairs_share_one_instance_and_differ_in_the_other():
    pictures = names('cat1-car1', 'cat1-cup1', 'cat2-car1', 'cat2-cup1', 'cat1-car1', 'dog1-car2')
    found = pair_pictures(pictures)
    # 0 and 4 are alike in both; 5 shares nothing but categories.
    assert as_sets(found.shape) == {frozenset(p) for p in [(0, 1), (1, 4), (2, 3)]}
    assert as_sets(found.texture) == {frozenset(p) for p in [(0, 2), (2, 4), (1, 3)]}


def test_fewer_pairs_are_drawn_from_all_and_again_the_same():
    pictures = names(*(f'cat{a}-car{b}' for a in range(6) for b in range(6)))
    every, some = pair_pictures(pictures), pair_pictures(pictures, most=20, seed=1)
    assert len(every.shape) == len(every.texture) == 6 * 15
    assert some.shape.shape == (20, 2)
    assert as_sets(some.shape) < as_sets(every.shape) and len(as_sets(some.shape)) == 20
    assert np.array_equal(pair_pictures(pictures, most=20, seed=1).texture, some.texture)


def test_either_picture_of_a_pair_may_come_first():
    pictures = names(*(f'cat{a}-car{b}' for a in range(6) for b in range(6)))
    first, second = pair_pictures(pictures).shape.T
    assert 0.25 < np.mean(first < second) < 0.75


def test_too_few_pairs_are_told():
    with pytest.raises(ValueError, match='3 pictures give 1 pairs of one shape and 1 of'):
        pair_pictures(names('cat1-car1', 'cat1-cup1', 'cat2-car1'))


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no image'):
        find_pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder'):
        find_pictures(tmp_path / 'absent')


@pytest.fixture(scope='module', params=['silhouettes', 'scenes'])
def made(request, tmp_path_factory):
    pytest.importorskip('skimage')
    pytest.importorskip('sklearn')
    root = tmp_path_factory.mktemp(request.param) / 'pictures'
    make_cue_conflict(root, request.param, num_shapes=4, num_textures=3, image_size=64)
    return request.param, root


def test_every_shape_is_made_with_every_texture(made):
    _, root = made
    pictures = find_pictures(root)
    shapes = {p.shape_instance for p in pictures}
    textures = {p.texture_instance for p in pictures}
    assert (len(shapes), len(textures), len(pictures)) == (4, 3, 12)
    pairs = pair_pictures(pictures)
    assert (len(pairs.shape), len(pairs.texture)) == (4 * 3, 3 * 6)


def test_pictures_of_one_shape_agree_where_the_shape_is(made):
    """Light minus dark is what a shape shows; a texture moves both alike."""
    kind, root = made
    pictures = find_pictures(root)
    images = [cv2.imread(str(p.path)).astype(float) for p in pictures]
    pairs = pair_pictures(pictures)
    if kind == 'silhouettes':
        grey = [np.abs(image - 128).max(2) < 1 for image in images]
        overlap = [(grey[a] == grey[b]).mean() for a, b in pairs.shape]
        others = [(grey[a] == grey[b]).mean() for a, b in pairs.texture]
        assert min(overlap) > 0.93 and np.mean(others) < np.mean(overlap)
        return
    edges = [cv2.Laplacian(image.mean(2), cv2.CV_64F).ravel() for image in images]
    same = np.mean([np.corrcoef(edges[a], edges[b])[0, 1] for a, b in pairs.shape])
    other = np.mean([np.corrcoef(edges[a], edges[b])[0, 1] for a, b in pairs.texture])
    assert same > 0.5 > other


def test_the_same_parameters_give_the_same_files_once(made, tmp_path):
    kind, root = made
    times = {p.path: p.path.stat().st_mtime_ns for p in find_pictures(root)}
    make_cue_conflict(root, kind, num_shapes=4, num_textures=3, image_size=64)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    again = make_cue_conflict(tmp_path / 'b', kind, num_shapes=4, num_textures=3, image_size=64)
    for path in times:
        assert (again / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match='does not hold these pictures'):
        make_cue_conflict(root, kind, num_shapes=5, num_textures=3, image_size=64)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(kind='sketches'), 'silhouettes, scenes'),
        (dict(num_shapes=1), 'got 1 and 20'),
        (dict(image_size=32), 'between 64 and 1024, got 32'),
    ],
)
def test_senseless_parameters_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_cue_conflict(tmp_path / 'new', **arguments)
    assert not (tmp_path / 'new').exists()
