"""Tables of what ``benchmarks/gpu_first.py`` found, and rows for the shipped table of forms."""

from collections.abc import Iterable, Sequence
from typing import Any

from mmlska.ops import measured, tuned

from . import report

Record = dict[str, Any]


def tell(files: Sequence[str], docs: str | None) -> None:
    """Print tables of the files, and rows for the shipped table; put the tables into a document.

    Raises:
        ValueError: If the files are of several machines, or the document has no such part.
    """
    records, machine = report.read_json(files)
    parts = [f'Measured by `python -m benchmarks.gpu_first` on {machine}.']
    parts += [summary_of(records), stage_table(records), sweep_table(records)]
    if failures := failures_of(records):
        parts.append('What failed:\n\n' + '\n'.join(f'- {line}' for line in failures))
    text = '\n\n'.join(part for part in parts if part)
    print(text)
    print('\n'.join(['', *measured_rows(records, machine)]))
    if docs:
        report.rewrite(docs, 'gpu-first', text)


def summary_of(records: Sequence[Record]) -> str:
    """Correctness and bandwidth, in two sentences."""
    checked = [record for record in records if record['step'] == 'correctness']
    copied = [record for record in records if record['step'] == 'copies' and 'dtype' in record]
    found = []
    if checked:
        right = sum(record.get('passed', False) for record in checked)
        found.append(f'{right} of {len(checked)} cases compute what float64 on the CPU does.')
    found += [
        f'A copy in {one["dtype"]} reads and writes {one["bytes_per_second"] / 1e12:.2f} TB/s.'
        for one in copied
    ]
    return ' '.join(found)


def stage_table(records: Sequence[Record]) -> str:
    """Milliseconds at the stages, by variant."""
    rows = [r for r in records if r['step'] == 'stages' and 'variants' in r]
    if not rows:
        return ''
    variants = list(rows[0]['variants'])
    left = dict.fromkeys(('operation', 'mode', 'map', 'dtype'), 'left')
    right = dict.fromkeys((*(f'{name} (ms)' for name in variants), 'speed-up', 'by the clock'))
    cells = []
    for row in rows:
        found = row['variants']
        others = [found[name] for name in variants if name != 'fast']
        best = min(others, key=lambda one: one['milliseconds'])
        wall = best['wall_milliseconds'] / found['fast']['wall_milliseconds']
        cells.append(
            [
                row['operation'],
                'train' if row['training'] else 'forward',
                '×'.join(map(str, row['shape'])),
                row['dtype'],
                *(report.number(found[name]['milliseconds']) for name in variants),
                f'{best["ratio_to_fast"]:.2f}',
                f'{wall:.2f}',
            ]
        )
    return report.table(left | dict.fromkeys(right, 'right'), cells)


def sweep_table(records: Sequence[Record]) -> str:
    """How many times faster other launch constants are, by map."""
    rows = [r for r in records if r['step'] == 'sweep' and 'speed_ups' in r]
    if not rows:
        return ''
    names = list(rows[0]['speed_ups'])
    left = dict.fromkeys(('mode', 'map'), 'left')
    cells = [
        [
            'train' if row['training'] else 'forward',
            '×'.join(map(str, row['shape'])),
            *(f'{row["speed_ups"][name]:.2f}' for name in names),
        ]
        for row in rows
    ]
    return report.table(left | dict.fromkeys(names, 'right'), cells)


def measured_rows(records: Sequence[Record], machine: str) -> list[str]:
    """Lines for the table in ``mmlska/ops/measured.py``, for what wins."""
    date = machine.rpartition(', ')[2]
    lines = []
    for record in records:
        if record['step'] == 'tune' and record.get('least'):
            key = [record['processor'], *(record[name] for name in tuned.Case._fields)]
            row = measured.Row(record['least'], date, 'docs/benchmarks.md, GPU')
            arguments = ', '.join(map(repr, key))
            lines.append(f'    Key({arguments}): Row({", ".join(map(repr, row))}),')
    return lines


def failures_of(records: Iterable[Record]) -> list[str]:
    """What failed, a line for each."""
    found = []
    for record in records:
        if 'error' in record or record.get('passed') is False:
            what = {k: v for k, v in record.items() if k not in ('step', 'passed', 'tail')}
            found.append(f'{record["step"]}: {what}')
    return found
