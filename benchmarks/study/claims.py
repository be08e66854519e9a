"""The claims of the paper, each with our figure, its interval and a verdict.

Two kinds of claims have intervals. *Equal*: the interval of a difference has to lie within a margin
that was chosen beforehand. *Growing*: the interval of a slope over the logarithm of the kernel size
has to lie above zero. What an interval does not decide is not decidable at this scale, whatever its
middle.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmlska.analysis.ablation import Estimate, estimate

CONFIRMED = 'confirmed'
REFUTED = 'not confirmed'
OPEN = 'not decidable at this scale'

# Figures by cell and seed: figures['base'][0] is that of seed 0.
Figures = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Claim:
    """A claim and what became of it.

    Attributes:
        text: The claim.
        figure: Our figure with its interval, in words.
        verdict: One of :data:`CONFIRMED`, :data:`REFUTED` and :data:`OPEN`.
    """

    text: str
    figure: str
    verdict: str


def judge_equality(found: Estimate | None, margin: float) -> str:
    """Verdict on a difference that is claimed to be zero.

    Args:
        found: The difference.
        margin: Largest difference that counts as none.
    """
    if found is None or found.low is None:
        return OPEN
    if -margin <= found.low and found.high <= margin:
        return CONFIRMED
    return REFUTED if found.low > margin or found.high < -margin else OPEN


def judge_growth(found: Estimate | None) -> str:
    """Verdict on a slope that is claimed to be positive."""
    if found is None or found.low is None:
        return OPEN
    if found.low > 0:
        return CONFIRMED
    return REFUTED if found.high <= 0 else OPEN


def mean_difference(
    figures: Figures, ours: Sequence[str], theirs: Sequence[str]
) -> Estimate | None:
    """Difference between two lists of cells, seed by seed: the mean over pairs is one value.

    Args:
        figures: Figures by cell and seed.
        ours: Cells whose figures count.
        theirs: Cells that they are compared with, in the same order.
    """
    differences: dict[int, list[float]] = {}
    for our, their in zip(ours, theirs, strict=True):
        own, other = figures.get(our, {}), figures.get(their, {})
        for seed in set(own) & set(other):
            differences.setdefault(seed, []).append(own[seed] - other[seed])
    means = [sum(values) / len(values) for values in differences.values()]
    return estimate(means) if means else None


def slopes(figures: Figures, families: Sequence[Mapping[int, str]]) -> Estimate | None:
    """Mean slope of a figure over the logarithm to base 2 of the kernel size.

    Each family and seed gives one slope, by least squares.

    Args:
        figures: Figures by cell and seed.
        families: For each kind of attention its cells by kernel size.
    """
    found = []
    for family in families:
        seeds = sorted({seed for cell in family.values() for seed in figures.get(cell, {})})
        for seed in seeds:
            points = [
                (math.log2(size), figures[cell][seed])
                for size, cell in family.items()
                if seed in figures.get(cell, {})
            ]
            if len(points) > 1:
                found.append(slope(points))
    return estimate(found) if found else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of points.

    >>> slope([(0, 1), (1, 3), (2, 5)])
    2.0
    """
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    above = sum((x - x_mean) * (y - y_mean) for x, y in points)
    return above / sum((x - x_mean) ** 2 for x, _ in points)


def in_words(found: Estimate | None, unit: str) -> str:
    """An estimate with its interval."""
    if found is None:
        return 'not measured'
    if found.low is None:
        return f'{found.mean:+.3g} {unit}, one value, no interval'
    return f'{found.mean:+.3g} {unit} [{found.low:+.3g}, {found.high:+.3g}], n = {found.number}'
