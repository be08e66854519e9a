import json

import numpy as np
import pytest
from PIL import Image

from mmlska.analysis.shape_texture import (
    FactorDimensions,
    dimension_records,
    dimension_rows,
    draw_dimensions,
    factor_dimensions,
    pair_correlations,
    stage_dimensions,
)
from mmlska.datasets.cue_conflict import pair_pictures, parse_name

SHAPES = TEXTURES = 60


@pytest.fixture(scope='module')
def pictures():
    return [parse_name(f'cat{a}-car{b}.png') for a in range(SHAPES) for b in range(TEXTURES)]


@pytest.fixture(scope='module')
def pairs(pictures):
    return pair_pictures(pictures, most=20000)


def responses(shape_neurons, texture_neurons, other_neurons, seed=0):
    """Neurons that know shape alone, texture alone, or neither, for each shape and texture."""
    rng = np.random.default_rng(seed)
    shape = np.repeat(rng.normal(size=(SHAPES, shape_neurons)), TEXTURES, axis=0)
    texture = np.tile(rng.normal(size=(TEXTURES, texture_neurons)), (SHAPES, 1))
    noise = rng.normal(size=(SHAPES * TEXTURES, other_neurons))
    return np.concatenate([shape, texture, noise], axis=1)


def softmax_dimensions(neurons, shape_score, texture_score):
    """The law, written out once more."""
    powers = np.exp([shape_score, texture_score, 1.0])
    first, second = np.floor(neurons * powers[:2] / powers.sum()).astype(int)
    return first, second, neurons - first - second


@pytest.mark.parametrize(
    ('shape', 'texture', 'other'), [(100, 0, 0), (0, 100, 0), (0, 0, 100), (60, 20, 20)]
)
def test_scores_are_the_shares_of_neurons_that_know_a_factor(shape, texture, other, pairs):
    (found,) = stage_dimensions([responses(shape, texture, other)], pairs)
    # Between n instances without return, independent ones correlate by -1 / (n - 1).
    assert found.shape_score == pytest.approx(shape / 100, abs=0.03)
    assert found.texture_score == pytest.approx(texture / 100, abs=0.03)
    assert found.neurons == found.shape + found.texture + found.residual == 100
    expected = softmax_dimensions(100, shape / 100, texture / 100)
    assert np.abs(np.subtract((found.shape, found.texture, found.residual), expected)).max() <= 1


def test_neurons_for_a_factor_correlate_fully_over_pairs_that_share_it(pairs):
    features = responses(3, 2, 0)
    for both, known, unknown in (
        (pairs.shape, slice(3), slice(3, 5)),
        (pairs.texture, slice(3, 5), slice(3)),
    ):
        found = pair_correlations(features[both[:, 0]], features[both[:, 1]])
        assert found[known] == pytest.approx(1, abs=1e-9)
        assert np.abs(found[unknown]).max() < 0.06


def test_a_mixed_neuron_has_the_share_of_its_variance(pairs):
    features = responses(1, 1, 0)
    mixed = features[:, :1] / features[:, 0].std() * 2 + features[:, 1:] / features[:, 1].std()
    (found,) = stage_dimensions([mixed], pairs)
    assert found.shape_score == pytest.approx(0.8, abs=0.04)
    assert found.texture_score == pytest.approx(0.2, abs=0.04)


def test_the_correlation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 4)).astype(np.float32)
    b += a * [0, 1, -2, 5]
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)]
    assert pair_correlations(a, b) == pytest.approx(expected)
    # Neither the unit nor the offset of a neuron counts.
    assert pair_correlations(3 * a - 7, b) == pytest.approx(expected, abs=1e-6)


def test_a_neuron_that_never_changes_correlates_with_nothing():
    a = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    a[:, 0], a[:, 1] = 0, 1 / 3
    assert pair_correlations(a, a).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ('first', 'second'),
    [(np.ones((5, 3)), np.ones((5, 4))), (np.ones((1, 3)),) * 2, (np.ones(5),) * 2],
)
def test_responses_that_are_no_pairs_are_refused(first, second):
    with pytest.raises(ValueError, match='at least two pairs'):
        pair_correlations(first, second)


def test_responses_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match='not finite'):
        pair_correlations(np.full((4, 2), np.nan), np.ones((4, 2)))


@pytest.mark.parametrize(
    ('scores', 'shares'),
    [((0, 0), (0.2119, 0.2119)), ((1, 0), (0.4223, 0.1554)), ((1, 1), (1 / 3, 1 / 3))],
)
def test_the_softmax_divides_neurons_up_as_the_documents_say(scores, shares):
    found = factor_dimensions(*(np.full(10_000, float(score)) for score in scores))
    assert (found.shape / 10_000, found.texture / 10_000) == pytest.approx(shares, abs=2e-4)


def test_two_correlations_of_each_neuron_are_needed():
    with pytest.raises(ValueError, match=r'got \(3,\) and \(4,\)'):
        factor_dimensions(np.ones(3), np.ones(4))


def test_tables_and_records_hold_every_stage(tmp_path):
    found = dict(model=[FactorDimensions(200, 0.5, 0.1, 62, 40, 98)] * 2)
    rows = dimension_rows(found)
    assert rows[2] == [
        *('model', '1', '200', '62 (31.0 %)', '40 (20.0 %)', '98 (49.0 %)', '0.500 / 0.100')
    ]
    kept = json.loads(json.dumps(dimension_records(found)))
    assert len(kept['model']) == 2 and kept['model'][0]['shape'] == 62
    draw_dimensions(tmp_path / 'new' / 'picture.png', found)
    assert Image.open(tmp_path / 'new' / 'picture.png').size == (990, 440)
