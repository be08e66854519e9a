"""One HTML page of an ablation that needs no other file: table, curves, pictures, configs."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .cells import Cell
from .examples import Example, data_address, gallery
from .records import curve
from .table import Row, failure_lines, start_lines, table_rows

# Losses are averaged over so many shares of a training.
POINTS = 60
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .3rem .7rem; text-align: right }
td:first-child, th:first-child { text-align: left } thead { border-bottom: 2px solid #888 }
tbody tr:nth-child(even) { background: #f4f4f4 } img { max-width: 100% }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 }
figcaption { color: #666; font-size: .85rem } pre { background: #f4f4f4; padding: .7rem }
.table { overflow-x: auto }
"""


def page(
    title: str,
    rows: Sequence[Row],
    metrics: Sequence[str],
    notes: Sequence[str],
    cells: Sequence[Cell],
    curves: bytes | None,
    examples: Mapping[str, Sequence[Example]],
    courses: Sequence[Sequence[Sequence[str]]] = (),
) -> str:
    """The page as text.

    Args:
        title: Its title.
        rows: Rows of the table, the base first.
        metrics: Names of the figures that are compared.
        notes: Sentences below the table.
        cells: The cells with their configs.
        curves: A PNG file of the curves, None if there are none.
        examples: Pictures by the name of the cell.
        courses: Tables of figures on the way.
    """
    labels = {cell.name: cell.label for cell in cells}
    parts = [
        f'<h1>{escape(title)}</h1>',
        html_table(table_rows(rows, metrics)),
        *(f'<p>{escape(note)}</p>' for note in notes),
        *map(html_table, courses),
        *listed('Failed', failure_lines(rows)),
        *listed('Outputs at iteration 0', start_lines(rows)),
    ]
    if curves:
        parts += ['<h2>Curves</h2>', f'<img src="{data_address(curves)}" alt="curves of training">']
    if examples:
        parts.append('<h2>Predictions</h2><p>Truth on the left, prediction on the right.</p>')
    for name, pictures in examples.items():
        parts += [f'<h3>{escape(labels[name])}</h3>', gallery(pictures)]
    parts.append('<h2>Configs</h2><p>Each says what differs from its base.</p>')
    parts += [
        f'<h3>{escape(cell.name)}.py</h3><pre>{escape(cell.text)}</pre>'
        for cell in cells
        if cell.text
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row of which is its header."""
    header = ''.join(f'<th>{escape(text)}</th>' for text in rows[0])
    body = ''.join(
        f'<tr>{"".join(f"<td>{escape(text)}</td>" for text in row)}</tr>' for row in rows[1:]
    )
    table = f'<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="table">{table}</div>'


def listed(title: str, lines: Sequence[str]) -> list[str]:
    """A heading and a list, nothing without lines."""
    if not lines:
        return []
    return [f'<h2>{title}</h2><ul>{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>']


def draw_curves(folders: Mapping[str, Sequence[Path]], metrics: Sequence[str]) -> bytes | None:
    """Draw losses and figures over iterations, the mean over seeds of each cell.

    Args:
        folders: Work dirs of the finished runs by the label of their cell.
        metrics: Names of the figures.

    Returns:
        A PNG file; None if nothing was logged more than once.
    """
    from matplotlib.figure import Figure

    names = [
        name
        for name in ('loss', *metrics)
        if any(len(curve(run, name)) > 1 for runs in folders.values() for run in runs)
    ]
    if not names:
        return None
    figure = Figure(figsize=(6 * len(names), 4.2), layout='constrained')
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, runs in folders.items():
            steps, values = mean_curve([curve(run, name) for run in runs], name == 'loss')
            axis.plot(steps, values, label=label, linewidth=1.2)
        axis.set(xlabel='step', title=name)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    if names[0] == 'loss':
        figure.axes[0].set_yscale('log')
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format='png')
    return file.getvalue()


def mean_curve(
    curves: Sequence[Sequence[tuple[int, float]]], smooth: bool
) -> tuple[list[int], list[float]]:
    """Mean of several curves at the steps that all have, and over neighbouring steps if wanted.

    >>> mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0)]], smooth=False)
    ([1], [3.0])
    """
    tables = [dict(points) for points in curves if points]
    if not tables:
        return [], []
    steps = sorted(set.intersection(*map(set, tables)))
    values = [sum(table[step] for table in tables) / len(tables) for step in steps]
    width = max(1, len(steps) // POINTS) if smooth else 1
    chunks = range(0, len(steps), width)
    return (
        [steps[min(i + width, len(steps)) - 1] for i in chunks],
        [sum(values[i : i + width]) / len(values[i : i + width]) for i in chunks],
    )
