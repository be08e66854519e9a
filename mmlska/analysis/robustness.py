"""Figures of robustness: what is left of a metric under corruptions.

Detection and segmentation (arXiv 1907.07484, equations 1 and 2): the performance under a corruption
is the mean over severities, mPC the mean over corruptions, rPC its share of the clean performance.
Classification (arXiv 1903.12261, equation 1): the error under a corruption is divided by that of
AlexNet, mCE is the mean over corruptions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmlska.datasets.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES

# Errors of AlexNet in percent, means over the five severities: the published reference of mCE.
ALEXNET_ERRORS = dict(
    gaussian_noise=88.6,
    shot_noise=89.4,
    impulse_noise=92.3,
    defocus_blur=82.0,
    glass_blur=82.6,
    motion_blur=78.6,
    zoom_blur=79.8,
    snow=86.7,
    frost=82.7,
    fog=81.9,
    brightness=56.5,
    contrast=85.3,
    elastic_transform=64.6,
    pixelate=71.8,
    jpeg_compression=60.7,
    speckle_noise=84.5,
    gaussian_blur=78.7,
    spatter=71.8,
    saturate=65.8,
)
COLUMNS = 5

# A figure for each severity, by corruption.
Grid = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Robustness:
    """One metric of one model.

    Attributes:
        name: Name of the model.
        clean: The metric without corruption, percent.
        cells: The metric by corruption and severity, percent.
    """

    name: str
    clean: float
    cells: Grid

    def under(self, corruption: str) -> float:
        """Mean over the severities of one corruption, percent."""
        figures = self.cells[corruption]
        return sum(figures.values()) / len(figures)

    def mean(self, corruptions: Iterable[str] | None = None) -> float:
        """Mean over corruptions of the means over severities (mPC), percent.

        Args:
            corruptions: Which ones. Defaults to all that were measured.
        """
        chosen = list(self.cells if corruptions is None else corruptions)
        return sum(map(self.under, chosen)) / len(chosen)

    def relative(self, corruptions: Iterable[str] | None = None) -> float:
        """What is left of the clean metric (rPC), percent; NaN if that is zero."""
        return 100 * self.mean(corruptions) / self.clean if self.clean else math.nan


def corruption_errors(
    errors: Mapping[str, float | Sequence[float]],
    reference: Mapping[str, float] = ALEXNET_ERRORS,
) -> dict[str, float]:
    r"""Corruption errors :math:`CE_c = 100 \sum_s E_{s,c} / \sum_s E^{ref}_{s,c}`.

    Args:
        errors: Top-1 error in percent by corruption: one for each severity, or their mean.
        reference: Mean errors of the reference, percent. Defaults to AlexNet's.

    Returns:
        The corruption errors in percent of the reference.

    Raises:
        ValueError: If an error is no percentage, there is none, or the reference lacks one.
    """
    if not errors:
        raise ValueError('corruption errors need the errors under one corruption at least')
    absent = [name for name in errors if name not in reference]
    if absent:
        raise ValueError(
            f'the reference has no error for {", ".join(absent)}: it has {", ".join(reference)}'
        )
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    wrong = {name: mean for name, mean in means.items() if not 0 <= mean <= 100}
    if wrong:
        raise ValueError(f'errors are percentages from 0 to 100, got {wrong}')
    return {name: 100 * mean / reference[name] for name, mean in means.items()}


def mean_corruption_error(
    errors: Mapping[str, float | Sequence[float]],
    reference: Mapping[str, float] = ALEXNET_ERRORS,
) -> float:
    """Mean corruption error (mCE); 100 is as robust as the reference, less is better.

    The benchmark takes the mean over 15 corruptions, :data:`mmlska.datasets.BENCHMARK`. LSKA's
    paper takes all 19, so that its figures are no others' (its ``mCE_cal.py``).

    Args:
        errors: As for :func:`corruption_errors`.
        reference: As for :func:`corruption_errors`.

    Raises:
        ValueError: See :func:`corruption_errors`.
    """
    ratios = corruption_errors(errors, reference)
    return sum(ratios.values()) / len(ratios)


def errors_of(found: Robustness, corruptions: Iterable[str]) -> dict[str, float]:
    """Mean errors in percent by corruption, of a model whose metric is the accuracy."""
    return {name: 100 - found.under(name) for name in corruptions}


def sets_of(measured: Iterable[str]) -> dict[str, list[str]]:
    """The sets of corruptions that means are taken over: the benchmark's 15, and all measured.

    Returns:
        The corruptions by the words for them. The benchmark is left out if it is not complete.
    """
    measured = [name for name in CORRUPTIONS if name in set(measured)]
    sets = {}
    if set(BENCHMARK) <= set(measured):
        sets[f'{len(BENCHMARK)} of the benchmark'] = list(BENCHMARK)
    if len(measured) != len(BENCHMARK) or not sets:
        words = 'all 19' if len(measured) == len(CORRUPTIONS) else f'{len(measured)} chosen'
        sets[words] = measured
    return sets


def summary_rows(found: Sequence[Robustness], as_errors: bool = False) -> list[list[str]]:
    """Lay models out side by side: a row per corruption, then the means.

    Args:
        found: The models, measured on the same corruptions and severities.
        as_errors: Whether the metric is an accuracy, to be shown as an error and mCE.

    Returns:
        Rows of text, the first of them the header.
    """

    def row(name: str, values: Iterable[float]) -> list[str]:
        return [name, *(f'{value:.1f}' for value in values)]

    def shown(value: float) -> float:
        return 100 - value if as_errors else value

    rows = [['corruption', *(one.name for one in found)]]
    rows.append(row('clean', (shown(one.clean) for one in found)))
    rows += [row(c, (shown(one.under(c)) for one in found)) for c in found[0].cells]
    for words, names in sets_of(found[0].cells).items():
        rows.append(row(f'mean, {words}', (shown(one.mean(names)) for one in found)))
        if as_errors:
            values = (mean_corruption_error(errors_of(one, names)) for one in found)
            rows.append(row(f'mCE, {words}', values))
        else:
            rows.append(row(f'of clean (%), {words}', (one.relative(names) for one in found)))
    return rows


def cell_rows(found: Robustness, as_errors: bool = False) -> list[list[str]]:
    """Lay one model out: a row per corruption, a column per severity."""
    severities = list(next(iter(found.cells.values())))
    rows = [[found.name, *(f'severity {severity}' for severity in severities)]]
    for corruption, figures in found.cells.items():
        values = (100 - value if as_errors else value for value in figures.values())
        rows.append([corruption, *(f'{value:.1f}' for value in values)])
    return rows


def record(found: Robustness, as_errors: bool = False) -> dict:
    """All figures of one model, for JSON."""
    means = {}
    for words, names in sets_of(found.cells).items():
        means[words] = dict(mean=found.mean(names), relative=found.relative(names))
        if as_errors:
            errors = errors_of(found, names)
            means[words].update(
                mCE=mean_corruption_error(errors), corruption_errors=corruption_errors(errors)
            )
    cells = {name: {str(s): v for s, v in row.items()} for name, row in found.cells.items()}
    return dict(name=found.name, clean=found.clean, cells=cells, means=means)


def draw_curves(path: str | Path, found: Sequence[Robustness], label: str) -> None:
    """Draw the metric over the severity, a panel per corruption, a line per model.

    Args:
        path: The picture. Its folder is made.
        found: The models.
        label: What the metric is called.
    """
    corruptions = list(found[0].cells)
    columns = min(COLUMNS, len(corruptions))
    rows = -(-len(corruptions) // columns)
    figure = Figure(figsize=(2.5 * columns + 0.5, 2.2 * rows + 0.8), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(corruptions) :]:
        axis.set_axis_off()
    for axis, corruption in zip(axes.flat, corruptions, strict=False):
        for one in found:
            figures = {0: one.clean, **one.cells[corruption]}
            axis.plot(list(figures), list(figures.values()), marker='.', label=one.name)
        axis.set_title(corruption.replace('_', ' '), fontsize=10)
        axis.set_xticks((0, *SEVERITIES))
        axis.grid(alpha=0.3)
    # All share one axis, which would not grow any more once it is set.
    axes.flat[0].set_ylim(bottom=0)
    figure.supxlabel('severity (0: clean)')
    figure.supylabel(label)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
    _save(figure, path)


def draw_radar(path: str | Path, found: Sequence[Robustness], label: str) -> None:
    """Draw the mean over severities as one polygon per model, a spoke per corruption.

    Args:
        path: The picture. Its folder is made.
        found: The models.
        label: What the metric is called.
    """
    corruptions = list(found[0].cells)
    angles = np.linspace(0, 2 * np.pi, len(corruptions), endpoint=False)
    figure = Figure(figsize=(7.5, 7.5), layout='constrained')
    axis = figure.add_subplot(projection='polar')
    for one in found:
        values = [one.under(name) for name in corruptions]
        (line,) = axis.plot([*angles, angles[0]], [*values, values[0]], marker='.', label=one.name)
        circle = np.linspace(0, 2 * np.pi, 200)
        axis.plot(circle, np.full(200, one.clean), '--', linewidth=1, color=line.get_color())
    axis.set_xticks(angles, [name.replace('_', '\n') for name in corruptions], fontsize=9)
    axis.tick_params(axis='x', pad=14)
    axis.set_theta_zero_location('N')
    axis.set_theta_direction(-1)
    axis.set_ylim(bottom=0)
    figure.suptitle(f'{label}, mean over severities (dashed: clean)', fontsize=11)
    figure.legend(loc='outside lower center', ncols=2)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
