"""From figures to claims: which cells stand for which sentence of the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .claims import (
    CONFIRMED,
    OPEN,
    REFUTED,
    Claim,
    Figures,
    in_words,
    judge_equality,
    judge_growth,
    mean_difference,
    slopes,
)
from .plan import Scale, cell_name

# Chosen before anything was measured. Percentage points of mIoU that count as no difference, and
# the growth of time from the smallest to the largest kernel that counts as flat.
MARGIN = 2.0
FLAT = 1.15
# Percent of mIoU below which a model has learned too little for its figures to tell anything; one
# that calls everything background has about 7.
LEARNED = 15.0


@dataclass
class Findings:
    """All that was measured.

    Attributes:
        scale: At which scale.
        accuracy: mIoU by cell and seed, percent.
        fields: Sides of squares, pixels, by share of the field, cell and seed.
        robustness: Figures on corrupted scenes by name, cell and seed.
        shape: Share of dimensions by factor, cell and seed.
        times: Costs of VAN-tiny by attention, see :func:`.measuring.times`.
        transfer: AP of detectors by start and seed, see :func:`.transfer.transfer`.
    """

    scale: Scale
    accuracy: Figures
    fields: Mapping[str, Figures] = field(default_factory=dict)
    robustness: Mapping[str, Figures] = field(default_factory=dict)
    shape: Mapping[str, Figures] = field(default_factory=dict)
    times: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    transfer: Figures = field(default_factory=dict)

    def has_learned(self) -> bool:
        """Whether all models with LSKA and LKA have learned to see digits at all."""
        cells = [*self.family('LSKA').values(), *self.family('LKA').values()]
        values = [value for cell in cells for value in self.accuracy.get(cell, {}).values()]
        return bool(values) and min(values) >= LEARNED

    def family(self, kind: str) -> dict[int, str]:
        """Cells of a kind of attention by kernel size."""
        trivial = kind.endswith('Trivial')
        sizes = self.scale.trivial_sizes if trivial else self.scale.kernel_sizes
        return {size: cell_name(kind, size) for size in sizes}


def judge(found: Findings) -> list[Claim]:
    """All claims in the order in which the page has them."""
    claims = [
        equal_claim(found, 'LSKA', 'LKA'),
        equal_claim(found, 'LSKATrivial', 'LKATrivial'),
        cheaper_claim(found, 'LSKA', 'LKA'),
        cheaper_claim(found, 'LSKATrivial', 'LKATrivial'),
        flat_claim(found, 'LSKA'),
        steeper_claim(found, 'LKATrivial', 'LSKATrivial'),
        *growth_claims(found),
    ]
    return claims if found.has_learned() else [undecided(claim) for claim in claims]


def undecided(claim: Claim) -> Claim:
    """A claim on models that have not learned; what was counted and timed stands."""
    if 'VAN-tiny' in claim.figure:
        return claim
    return replace(claim, figure=f'{claim.figure} (not learned)', verdict=OPEN)


def growth_claims(found: Findings) -> list[Claim]:
    """What grows with the kernel size of LSKA and LKA."""
    rising = [
        ('The figure grows with k', found.accuracy, 'points'),
        ('The effective field grows with k (square of 50 %)', found.fields.get('50%', {}), 'px'),
        ('The effective field grows with k (square of 99 %)', found.fields.get('99%', {}), 'px'),
        (
            'Robustness grows with k (share that is kept)',
            found.robustness.get('kept', {}),
            'points',
        ),
        ('The share of shape grows with k', found.shape.get('shape', {}), 'points'),
    ]
    families = [found.family('LSKA'), found.family('LKA')]
    claims = []
    for text, figures, unit in rising:
        growth = slopes(figures, families)
        words = in_words(growth, f'{unit} for each doubling of k')
        claims.append(Claim(text, words, judge_growth(growth)))
    return claims


def equal_claim(found: Findings, ours: str, theirs: str) -> Claim:
    """One form reaches what another reaches."""
    pairs = found.family(ours), found.family(theirs)
    difference = mean_difference(found.accuracy, *(list(cells.values()) for cells in pairs))
    sizes = ', '.join(map(str, pairs[0]))
    return Claim(
        f'{ours} reaches the figure of {theirs} (k = {sizes or "none"}; within {MARGIN:g} points)',
        in_words(difference, 'points of mIoU'),
        judge_equality(difference, MARGIN),
    )


def cheaper_claim(found: Findings, ours: str, theirs: str) -> Claim:
    """One form has fewer parameters and multiply-adds than another at every kernel size."""
    text = f'{ours} has fewer parameters and multiply-adds than {theirs}'
    pairs = [
        (size, found.times[f'{ours} {size}'], found.times[f'{theirs} {size}'])
        for size in found.family(ours)
        if f'{ours} {size}' in found.times and f'{theirs} {size}' in found.times
    ]
    if not pairs:
        return Claim(text, 'not measured', OPEN)
    is_less = all(a[key] < b[key] for _, a, b in pairs for key in ('params', 'macs'))
    figures = [
        f'k = {size}: {100 * (a["params"] / b["params"] - 1):+.1f} %, '
        f'{100 * (a["macs"] / b["macs"] - 1):+.1f} %'
        for size, a, b in pairs
    ]
    return Claim(
        text, f'{"; ".join(figures)} (VAN-tiny, counted)', CONFIRMED if is_less else REFUTED
    )


def growth_of_time(found: Findings, kind: str) -> tuple[str, float, float, float] | None:
    """Time at the largest kernel as a multiple of that at the smallest: words, low, middle, high.

    The ends put the outer quartiles of the one over those of the other.
    """
    times = {size: found.times.get(f'{kind} {size}') for size in found.family(kind)}
    measured = {size: cost['time'] for size, cost in times.items() if cost}
    if len(measured) < 2:
        return None
    small, large = min(measured), max(measured)
    low, middle, high = (
        measured[large][a] / measured[small][b] for a, b in ((0, 2), (1, 1), (2, 0))
    )
    words = f'k = {small} to {large}: {middle:.2f} times [{low:.2f}, {high:.2f}]'
    return words, low, middle, high


def flat_claim(found: Findings, kind: str) -> Claim:
    """Time hardly grows with the kernel."""
    text = f'The time of {kind} is nearly flat in k (up to {FLAT:g} times)'
    growth = growth_of_time(found, kind)
    if growth is None:
        return Claim(text, 'not measured', OPEN)
    words, low, _, high = growth
    verdict = CONFIRMED if high <= FLAT else REFUTED if low > FLAT else OPEN
    return Claim(text, f'{words} (VAN-tiny, quartiles)', verdict)


def steeper_claim(found: Findings, steep: str, flat: str) -> Claim:
    """The time of one form grows faster with the kernel than that of another."""
    text = f'The time of {steep} grows faster with k than that of {flat}'
    growths = growth_of_time(found, steep), growth_of_time(found, flat)
    if None in growths:
        return Claim(text, 'not measured', OPEN)
    (words, low, _, high), (other, other_low, _, other_high) = growths
    verdict = CONFIRMED if low > other_high else REFUTED if high < other_low else OPEN
    return Claim(text, f'{words} against {other} (VAN-tiny, quartiles)', verdict)
