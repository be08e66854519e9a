"""An ablation from its settings to its reports."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mmlska.analysis.complexity import WHAT_IS_COUNTED, first_line, format_table

from .cells import Cell, config_path, make_cells, write_configs
from .costs import Cost, count, measure_costs
from .course import course_rows
from .examples import Example, best_and_worst
from .page import draw_curves, page
from .records import choose_metrics
from .runs import (
    FAILURE,
    RESULT,
    Launch,
    Run,
    check_unchanged,
    command,
    list_runs,
    only_one,
    read_json,
    train_all,
)
from .spec import Spec
from .start import compare_starts
from .table import Row, comma_separated, latex, markdown

COSTS = 'costs.json'
INTERVAL = (
    'Difference: mean over seeds of the difference to the base at the same seed, with '
    "Student's 95 % interval, mean ± t(n-1) · s / √n; it is that of one comparison."
)
TIME = (
    'Time: a forward pass, as a multiple of the base, measured side by side (median of rounds in '
    'turns). Step: largest memory of tensors in forward and backward pass of a training batch.'
)


def run_ablation(spec: Spec, launch: Launch, pictures: bool = True) -> list[Row]:
    """Train all cells, measure what they cost, and write the reports; what is done is kept.

    Args:
        spec: What to compare.
        launch: How trainings are started.
        pictures: Whether the page shows predictions.

    Returns:
        The rows of the table, the base first.

    Raises:
        InterruptedRunsError: If trainings were interrupted.
        ValueError: If the settings are wrong, or finished runs were trained by others.
    """
    cells = make_cells(spec)
    with only_one(spec.work_dir):
        check_unchanged(list_with_configs(spec, cells))
        starts = {}
        if spec.weights is not None:
            starts = compare_starts(configs_of(spec, cells), spec.weights)
            for name, words in starts.items():
                print(f'at iteration 0 {name} {words}')
        train_all(list_runs(spec, cells), launch)
        costs = measure_costs(configs_of(spec, cells), spec.work_dir / COSTS)
        rows = make_rows(spec, cells, costs, starts)
        write_reports(spec, cells, rows, pictures)
    return rows


def list_with_configs(spec: Spec, cells: Sequence[Cell]) -> list[Run]:
    """Write the configs, and list the runs."""
    write_configs(spec, cells)
    return list_runs(spec, cells)


def configs_of(spec: Spec, cells: Sequence[Cell]) -> dict[str, Path]:
    """Configs of the cells that have one, by name."""
    return {cell.name: config_path(spec, cell) for cell in cells if cell.text}


def describe(spec: Spec, launch: Launch) -> str:
    """What an ablation would do: cells with their sizes, and the commands; nothing is trained.

    The configs are written.
    """
    cells = make_cells(spec)
    runs = list_with_configs(spec, cells)
    rows, failures = [['cell', 'parameters', 'multiply-adds', 'config']], []
    for cell in cells:
        cost = count(config_path(spec, cell)) if cell.text else Cost(failure=cell.failure)
        if cost.failure:
            failures.append(f'{cell.label} fails: {cost.failure}')
            continue
        sizes = [f'{cost.params / 1e6:.3f} M', f'{cost.macs / 1e9:.3f} G']
        rows.append([cell.label, *sizes, str(config_path(spec, cell))])
    finished = sum((run.folder / RESULT).exists() for run in runs)
    lines = [
        format_table(rows),
        *failures,
        f'\n{WHAT_IS_COUNTED}\n',
        f'{len(runs)} runs ({len(spec.seeds)} seeds), {finished} finished. The first is',
        '  ' + ' '.join(command(runs[0], launch)),
    ]
    return '\n'.join(lines)


def make_rows(
    spec: Spec, cells: Sequence[Cell], costs: Mapping[str, Cost], starts: Mapping[str, str]
) -> list[Row]:
    """What is known of each cell, read from its runs."""
    rows = {
        cell.name: Row(
            cell.name,
            cell.label,
            cost=costs.get(cell.name, Cost()),
            failures={'config': cell.failure} if cell.failure else {},
            start=starts.get(cell.name, ''),
        )
        for cell in cells
    }
    for run in list_runs(spec, cells):
        row = rows[run.cell.name]
        if result := read_json(run.folder / RESULT):
            for name, value in result['figures'].items():
                row.figures.setdefault(name, {})[run.seed] = value
        elif failure := read_json(run.folder / FAILURE):
            row.failures[f'seed {run.seed}'] = failure['reason']
    return list(rows.values())


def metrics_of(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """Names of the figures that are compared."""
    return choose_metrics([dict.fromkeys(row.figures, 0.0) for row in rows], spec.metrics)


def write_reports(spec: Spec, cells: Sequence[Cell], rows: list[Row], pictures: bool) -> None:
    """Write ``report.md``, ``.csv``, ``.tex``, ``.json`` and ``.html`` into the work dir."""
    metrics = metrics_of(spec, rows)
    courses = make_courses(spec, cells, metrics)
    notes = [INTERVAL, TIME, WHAT_IS_COUNTED.replace('\n', ' ')]
    folders = finished_folders(spec, cells)
    texts = {
        'md': markdown(rows, metrics, notes, courses),
        'csv': comma_separated(rows, metrics),
        'tex': latex(rows, metrics),
        'json': json.dumps([asdict(row) for row in rows], indent=1) + '\n',
    }
    labels = {cell.name: cell.label for cell in cells}
    curves = draw_curves({labels[name]: runs for name, runs in folders.items()}, metrics)
    examples = draw_examples(spec, folders) if pictures else {}
    title = f'Ablation of {spec.base.stem}'
    texts['html'] = page(title, rows, metrics, notes, cells, curves, examples, courses)
    for suffix, text in texts.items():
        (spec.work_dir / f'report.{suffix}').write_text(text, encoding='utf-8')


def make_courses(
    spec: Spec, cells: Sequence[Cell], metrics: Sequence[str]
) -> list[list[list[str]]]:
    """Where cells with weights begin and how far they fall, a table for each figure."""
    if spec.weights is None:
        return []
    labels = {cell.name: cell.label for cell in cells}
    folders = {labels[name]: runs for name, runs in finished_folders(spec, cells).items()}
    return [course_rows(folders, metric) for metric in metrics] if folders else []


def finished_folders(spec: Spec, cells: Sequence[Cell]) -> dict[str, list[Path]]:
    """Work dirs of the finished runs by the name of their cell."""
    folders: dict[str, list[Path]] = {}
    for run in list_runs(spec, cells):
        if (run.folder / RESULT).exists():
            folders.setdefault(run.cell.name, []).append(run.folder)
    return folders


def draw_examples(spec: Spec, folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Example]]:
    """Best and worst prediction of the first run of each cell."""
    examples = {}
    for name, runs in folders.items():
        config = spec.work_dir / 'configs' / f'{name}.py'
        # Tasks without boxes or segments have no such pictures, and a report is worth more.
        try:
            examples[name] = best_and_worst(config, runs[0], spec.work_dir / 'pictures' / name)
        except Exception as error:
            print(f'no pictures of {name} ({first_line(error)})')
    return examples


def summary(spec: Spec, rows: Sequence[Row]) -> str:
    """The table in words, for a terminal."""
    metrics = metrics_of(spec, rows)
    return markdown(rows, metrics, [INTERVAL], make_courses(spec, make_cells(spec), metrics))
