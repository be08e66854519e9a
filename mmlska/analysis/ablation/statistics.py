r"""Means, spreads, and differences to the base over seeds.

A cell and the base are trained with the same seeds, so that they are compared seed by seed. With
the differences :math:`d_i = m_i - b_i` of :math:`n` seeds, the interval of their mean is Student's

.. math:: \bar d \pm t_{n-1, (1+c)/2} \, s_d / \sqrt n, \qquad
    s_d^2 = \frac{1}{n-1} \sum_i (d_i - \bar d)^2

with the confidence :math:`c` (Student, "The probable error of a mean", Biometrika 6, 1908). It
takes the differences for independent and normally distributed, and is that of one comparison: of
twenty cells that do nothing, one is expected outside of its 95 % interval.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its spread and its confidence interval.

    Attributes:
        mean: Arithmetic mean.
        std: Standard deviation of the values, with n - 1 below the root; None of one value.
        low: Lower end of the interval of the mean; None of one value.
        high: Upper end.
        number: Number of values.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    number: int


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of values, with Student's interval.

    Args:
        values: One or more.
        confidence: Share of such intervals that hold the true mean.

    Raises:
        ValueError: If there is no value.
    """
    if not values:
        raise ValueError('the mean of no values was asked for')
    mean, number = statistics.fmean(values), len(values)
    if number == 1:
        return Estimate(mean, None, None, None, 1)
    from scipy.stats import t

    std = statistics.stdev(values)
    half = float(t.ppf((1 + confidence) / 2, number - 1)) * std / math.sqrt(number)
    return Estimate(mean, std, mean - half, mean + half, number)


def paired_difference(
    values: Mapping[int, float], base: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Mean of the differences to the base, over the seeds that both have; None if there is none.

    Args:
        values: Figures of a cell by seed.
        base: Those of the base.
        confidence: See :func:`estimate`.
    """
    shared = sorted(set(values) & set(base))
    if not shared:
        return None
    return estimate([values[seed] - base[seed] for seed in shared], confidence)
