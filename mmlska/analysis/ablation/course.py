"""Where cells with weights begin and how far they fall: figures at iteration 0, and on the way."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .records import evaluated
from .statistics import estimate
from .table import interval_text, mean_text, percent


def course_rows(folders: Mapping[str, Sequence[Path]], metric: str) -> list[list[str]]:
    """A table of a figure in the evaluations of each cell, its header first.

    Args:
        folders: Work dirs of the finished runs, one a seed, by the label of their cell.
        metric: Name of the figure.
    """
    rows = [['cell', f'{metric} at iteration 0 (%)', 'lowest later', 'end', 'lowest - start']]
    for label, runs in folders.items():
        logged = [dict(enumerate(evaluated(run, metric))) for run in runs]
        courses = [list(percent(metric, values).values()) for values in logged]
        start = [course[0] for course in courses]
        lowest = [min(course[1:] or course) for course in courses]
        end = [course[-1] for course in courses]
        fall = [low - first for low, first in zip(lowest, start, strict=True)]
        means = [mean_text(estimate(values)) for values in (start, lowest, end)]
        rows.append([label, *means, interval_text(estimate(fall))])
    return rows
