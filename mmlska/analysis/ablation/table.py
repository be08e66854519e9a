"""The table of an ablation: its rows, and what they look like in Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmlska.analysis.complexity import format_table

from .costs import Cost
from .statistics import Estimate, estimate, paired_difference

# Evaluations that log shares of 1; the others log percent.
SHARES = ('coco/', 'lvis/', 'pascal_voc/', 'coco_panoptic/')
ABSENT = '–'


@dataclass
class Row:
    """What is known of a cell.

    Attributes:
        name: Name of its config.
        label: What it is, in words.
        figures: Figures by name, each by seed, as they were logged.
        cost: What it costs.
        failures: Reasons why it has no config or no figures, by seed.
        start: Whether its outputs at iteration 0 equal the base's, in words; '' if nobody looked.
    """

    name: str
    label: str
    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    failures: dict[str, str] = field(default_factory=dict)
    start: str = ''


def percent(metric: str, values: Mapping[int, float]) -> dict[int, float]:
    """Figures by seed in percent."""
    unit = 100 if metric.startswith(SHARES) else 1
    return {seed: unit * value for seed, value in values.items()}


def mean_of(row: Row, metric: str) -> Estimate | None:
    """Mean over seeds in percent, None without a figure."""
    values = percent(metric, row.figures.get(metric, {}))
    return estimate(list(values.values())) if values else None


def difference_of(row: Row, base: Row, metric: str) -> Estimate | None:
    """Difference to the base in percentage points, paired over seeds."""
    return paired_difference(
        percent(metric, row.figures.get(metric, {})), percent(metric, base.figures.get(metric, {}))
    )


def headers(metrics: Sequence[str]) -> list[str]:
    """Titles of the columns."""
    figures = [
        title for metric in metrics for title in (f'{metric} (%)', 'difference [95 % interval]')
    ]
    costs = ['parameters (M)', 'multiply-adds (G)', 'step (MiB)', 'time']
    return ['cell', 'seeds', *figures, *costs]


def cells_of(row: Row, base: Row, metrics: Sequence[str]) -> list[str]:
    """A row in words."""
    seeds = {seed for values in row.figures.values() for seed in values}
    texts = [row.label, str(len(seeds))]
    for metric in metrics:
        texts += [mean_text(mean_of(row, metric))]
        texts += [ABSENT if row is base else interval_text(difference_of(row, base, metric))]
    cost = row.cost
    return [
        *texts,
        scaled(cost.params, 1e6),
        scaled(cost.macs, 1e9),
        scaled(cost.step_bytes, 2**20),
        ABSENT if cost.time is None else f'{cost.time[1]:.2f}',
    ]


def mean_text(found: Estimate | None) -> str:
    """Mean and standard deviation."""
    if found is None:
        return ABSENT
    return f'{found.mean:.2f}' + (f' ± {found.std:.2f}' if found.std is not None else '')


def interval_text(found: Estimate | None) -> str:
    """Mean and confidence interval of a difference."""
    if found is None:
        return ABSENT
    ends = '' if found.low is None else f' [{found.low:+.2f}, {found.high:+.2f}]'
    return f'{found.mean:+.2f}{ends}'


def scaled(value: float | None, unit: float) -> str:
    """Four digits of a number in a unit."""
    return ABSENT if value is None else f'{value / unit:.4g}'


def table_rows(rows: Sequence[Row], metrics: Sequence[str]) -> list[list[str]]:
    """The table in words, its header first; the first row is the base."""
    return [headers(metrics), *(cells_of(row, rows[0], metrics) for row in rows)]


def failure_lines(rows: Sequence[Row]) -> list[str]:
    """Every failure with its reason; one that several seeds share is told once."""
    lines = []
    for row in rows:
        places: dict[str, list[str]] = {}
        costs = {'costs': row.cost.failure} if row.cost.failure else {}
        for place, reason in (row.failures | costs).items():
            places.setdefault(reason, []).append(place)
        lines += [f'{row.label}, {", ".join(found)}: {why}' for why, found in places.items()]
    return lines


def start_lines(rows: Sequence[Row]) -> list[str]:
    """What is known of the outputs at iteration 0."""
    return [f'{row.label}: {row.start}' for row in rows if row.start]


def markdown(
    rows: Sequence[Row],
    metrics: Sequence[str],
    notes: Sequence[str],
    courses: Sequence[list[list[str]]] = (),
) -> str:
    """The table in Markdown, with notes, further tables and failures below."""
    parts = [format_table(table_rows(rows, metrics), markdown=True), *notes]
    parts += [format_table(course, markdown=True) for course in courses]
    for title, lines in (
        ('Failed', failure_lines(rows)),
        ('Outputs at iteration 0', start_lines(rows)),
    ):
        if lines:
            parts.append('\n'.join([f'{title}:', '', *(f'- {line}' for line in lines)]))
    return '\n\n'.join(parts) + '\n'


def comma_separated(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """The table as CSV, with full precision, a column for each number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    numbers = ('mean', 'std', 'difference', 'low', 'high', 'seeds')
    figures = [f'{metric} {number}' for metric in metrics for number in numbers]
    costs = ['params', 'macs', 'step_bytes', 'time_lower', 'time', 'time_upper']
    writer.writerow(['name', 'label', *figures, *costs, 'failure'])
    for row in rows:
        values = [value for metric in metrics for value in numbers_of(row, rows[0], metric)]
        cost = row.cost
        spread = cost.time or (None, None, None)
        failures = '; '.join(failure_lines([row]))
        costs = [cost.params, cost.macs, cost.step_bytes, *spread]
        writer.writerow([row.name, row.label, *values, *costs, failures])
    return file.getvalue()


def numbers_of(row: Row, base: Row, metric: str) -> list[float | int | None]:
    """Mean, standard deviation, difference with its interval, and number of seeds."""
    mean = mean_of(row, metric)
    difference = None if row is base else difference_of(row, base, metric)
    values = [None, None] if mean is None else [mean.mean, mean.std]
    if difference is None:
        values += [None, None, None]
    else:
        values += [difference.mean, difference.low, difference.high]
    return [*values, 0 if mean is None else mean.number]


def latex(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    r"""The table for a paper; it needs ``\usepackage{booktabs}``."""
    header, *body = [[latex_text(text) for text in row] for row in table_rows(rows, metrics)]
    lines = [
        rf'\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}',
        r'\toprule',
        f'{" & ".join(header)} \\\\',
        r'\midrule',
        *(f'{" & ".join(row)} \\\\' for row in body),
        r'\bottomrule',
        r'\end{tabular}',
    ]
    return '\n'.join(lines) + '\n'


def latex_text(text: str) -> str:
    r"""Text with the signs that LaTeX would read as its own written out.

    >>> print(latex_text('kernel_size=7 (%)'))
    kernel\_size=7 (\%)
    """
    signs = {'\\': r'\textbackslash{}', '±': r'$\pm$', '–': '--', '~': r'\textasciitilde{}'}
    signs |= {sign: f'\\{sign}' for sign in '_%&#${}'}
    return ''.join(signs.get(sign, sign) for sign in text)
