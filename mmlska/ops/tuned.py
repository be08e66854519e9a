"""The file in which ``python -m mmlska tune`` keeps what it measured on this machine.

Readable JSON in the user's folder for caches. It may hold tables of several devices, PyTorch and
Triton versions, since machines share home folders: a table counts only where all three are the
same. Nothing of it is trusted: what is not understood is told, and left aside.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT_VARIABLE = 'MMLSKA_TUNED'
OFF = 'off'
FORMAT = 1
ROW_FIELDS = {'operation': str, 'training': bool, 'case': str, 'dtype': str}


class Place(NamedTuple):
    """Where a table holds.

    Attributes:
        processor: As in the shipped table, see :class:`mmlska.ops.measured.Key`.
        device: Name of the CPU or GPU.
        torch: Version of PyTorch.
        triton: Version of Triton, '' for a CPU.
    """

    processor: str
    device: str
    torch: str
    triton: str

    def __str__(self) -> str:
        triton = f', Triton {self.triton}' if self.triton else ''
        return f'{self.device}, PyTorch {self.torch}{triton}'


class Case(NamedTuple):
    """What was measured at a place, see :class:`mmlska.ops.measured.Key`."""

    operation: str
    training: bool
    case: str
    dtype: str


class Table(NamedTuple):
    """What came out at a place.

    Attributes:
        place: Where it holds.
        date: When it was measured.
        least: Elements of the smallest map for which the fast form wins, by what was measured; None
            where it never does.
    """

    place: Place
    date: str
    least: Mapping[Case, int | None]


class TunedFileError(ValueError):
    """A file that is not, or not wholly, such a one."""


def path_in_use() -> Path | None:
    """The file that is read and written: what the environment names, else one in the user's cache.

    None where ``MMLSKA_TUNED=off`` says that none is, and where there is no home folder, as in
    containers.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return None if named == OFF else Path(os.path.expanduser(named))
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(cache, 'mmlska', 'tuned.json') if os.path.isabs(cache) else None


def read(path: Path) -> list[Table]:
    """The tables of a file; none if there is no file.

    Raises:
        TunedFileError: If it cannot be read, or holds something else. The message says what.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise TunedFileError(f'{path} cannot be read: {error}') from error
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise TunedFileError(f'{path} was not written by `python -m mmlska tune` of this version')
    try:
        return [_table_of(found) for found in content['tables']]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TunedFileError(f'{path} holds a table that is broken: {error!r}') from error


def write(path: Path, tables: Iterable[Table]) -> None:
    """Write tables so that nobody ever reads half of them.

    Raises:
        OSError: If the folder cannot be written to.
    """
    content = dict(format=FORMAT, tables=[_record_of(table) for table in tables])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        'w', dir=path.parent, prefix=f'{path.name}.', delete=False, encoding='utf-8'
    ) as file:
        json.dump(content, file, indent=1)
        file.write('\n')
    os.replace(file.name, path)


def merged(tables: Iterable[Table], new: Table) -> list[Table]:
    """The tables with a new one, in the place of that of the same place if there is one."""
    return [table for table in tables if table.place != new.place] + [new]


def _table_of(found: Mapping[str, Any]) -> Table:
    place = Place(*(_checked(found, name, str) for name in Place._fields))
    least = {}
    for row in found['rows']:
        case = Case(*(_checked(row, name, kind) for name, kind in ROW_FIELDS.items()))
        least[case] = _checked_least(row['least'])
    return Table(place, _checked(found, 'date', str), least)


def _record_of(table: Table) -> dict[str, Any]:
    rows = [dict(case._asdict(), least=least) for case, least in table.least.items()]
    return dict(table.place._asdict(), date=table.date, rows=rows)


def _checked(found: Mapping[str, Any], name: str, kind: type) -> Any:
    value = found[name]
    if type(value) is not kind:
        raise TypeError(f'{name} is {value!r}, not of type {kind.__name__}')
    return value


def _checked_least(value: Any) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise ValueError(f'least is {value!r}, neither a positive integer nor null')


def largest(values: Iterable[int | None]) -> int | None:
    """The size from which on a form wins wherever it was measured; None if somewhere it never does.

    >>> largest([4, 16]), largest([4, None])
    (16, None)
    """
    most = max((math.inf if value is None else value for value in values), default=math.inf)
    return None if most == math.inf else int(most)
