import math

import numpy as np
import pytest
from scipy import stats

from mmlska.analysis.ablation.statistics import estimate, paired_difference


@pytest.mark.parametrize('number', [2, 3, 8])
def test_the_interval_is_that_of_the_paired_t_test(number):
    rng = np.random.default_rng(number)
    cell, base = rng.normal(1, 2, number), rng.normal(0, 3, number)
    found = paired_difference(dict(enumerate(cell)), dict(enumerate(base)))
    wanted = stats.ttest_rel(cell, base).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(cell - base))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.std == pytest.approx(np.std(cell - base, ddof=1))


def test_by_hand():
    """Of 1, 2, 3 the mean is 2, s is 1, and t of two degrees of freedom 4.303."""
    found = estimate([1, 2, 3])
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert (found.mean, found.std, found.number) == (2, 1, 3)


def test_ninety_five_of_a_hundred_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    found = [estimate(list(sample)) for sample in rng.normal(5, 1, (2000, 4))]
    assert np.mean([e.low < 5 < e.high for e in found]) == pytest.approx(0.95, abs=0.015)


def test_only_shared_seeds_are_compared():
    found = paired_difference({0: 5.0, 1: 6.0, 7: 100.0}, {0: 4.0, 1: 4.0, 2: -100.0})
    assert (found.mean, found.number) == (1.5, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_value_has_no_interval():
    found = estimate([3.0])
    assert (found.mean, found.std, found.low, found.high) == (3.0, None, None, None)
    with pytest.raises(ValueError, match='no values'):
        estimate([])
