"""Tables, JSON files and the generated parts of documents."""

import datetime
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, in columns of even width.

    Args:
        columns: Alignment of each column, 'left' or 'right', by its title.
        rows: Cells; those that a row lacks at its end stay empty.
    """
    # Written out, since a GPU machine has PyTorch and Triton but seldom a library of tables.
    lines = [list(columns), *([*row, *[''] * (len(columns) - len(row))] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.ljust if side == 'left' else str.rjust for side in columns.values()]
    cells = [[pad(*cell) for pad, *cell in zip(pads, line, widths, strict=True)] for line in lines]
    rule = [pad(':', width, '-') for pad, width in zip(pads, widths, strict=True)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in (cells[0], rule, *cells[1:]))


def number(value: float) -> str:
    """Three digits that count.

    >>> [number(value) for value in (0.01234, 5.678, 123.4, 4567.8)]
    ['0.0123', '5.68', '123', '4568']
    """
    return f'{value:.3g}' if value < 1000 else f'{value:.0f}'


def machine(device: str = 'cpu') -> dict[str, Any]:
    """What the measurement ran on."""
    found = dict(
        processor=processor(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        torch=torch.__version__,
        system=platform.platform(),
    )
    if device.startswith('cuda'):
        found['gpu'] = torch.cuda.get_device_name(device)
        found['cuda'] = torch.version.cuda
    return found


def processor() -> str:
    """Name of the processor."""
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    return found[1] if found else platform.machine()


def describe_machine(found: Mapping[str, Any]) -> str:
    """The machine in one line."""
    gpu = f'{found["gpu"]} with CUDA {found["cuda"]}, ' if 'gpu' in found else ''
    return (
        f'{gpu}{found["cores"]} × {found["processor"]}, Python {found["python"]}, '
        f'torch {found["torch"]}'
    )


def here_and_today(device: str) -> str:
    """This machine and the date, in one line."""
    return f'{describe_machine(machine(device))}, {today()}'


def tell(line: str) -> None:
    """Show progress beside the results."""
    print(line, file=sys.stderr, flush=True)


def failure(error: Exception) -> str:
    """What went wrong, in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def today() -> str:
    """The date, as in a text."""
    return datetime.date.today().isoformat()


def write_json(
    path: str | Path, command: str, device: str, results: Sequence[dict[str, Any]]
) -> None:
    """Write results with the machine, the date and the command."""
    record = dict(command=command, date=today(), machine=machine(device), results=results)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + '\n')


def read_json(paths: Sequence[str | Path]) -> tuple[list[dict[str, Any]], str]:
    """Read what :func:`write_json` wrote, from one file or several of one machine.

    Returns:
        The results, and the machine with the date.

    Raises:
        ValueError: If the files are not of one machine.
    """
    records = [json.loads(Path(path).read_text()) for path in paths]
    machines = sorted({describe_machine(record['machine']) for record in records})
    if len(machines) != 1:
        raise ValueError(f'these results are not of one machine: {"; ".join(machines)}')
    results = [result for record in records for result in record['results']]
    return results, f'{machines[0]}, {max(record["date"] for record in records)}'


def markers(name: str) -> tuple[str, str]:
    """The lines between which a generated part of a document stands."""
    return f'<!-- begin {name}: generated, do not edit -->', f'<!-- end {name} -->'


def rewrite(path: str | Path, name: str, text: str) -> None:
    """Replace the generated part of a document.

    Raises:
        ValueError: If the document has no such part, or its markers are not a pair.
    """
    path = Path(path)
    check_markers(path, name)
    begin, end = markers(name)
    document = path.read_text(encoding='utf-8')
    before, rest = document.split(begin)
    after = rest.split(end)[1]
    path.write_text(f'{before}{begin}\n\n{text.strip()}\n\n{end}{after}', encoding='utf-8')


def check_markers(path: str | Path, name: str) -> None:
    """Check that a document has the part.

    Raises:
        ValueError: If its markers do not stand there once each, in their order.
    """
    document = Path(path).read_text(encoding='utf-8')
    begin, end = markers(name)
    counts = (document.count(begin), document.count(end))
    if counts != (1, 1) or document.index(begin) > document.index(end):
        raise ValueError(f'{path} must hold the lines {begin!r} and {end!r} once each, in order')
