"""A case, a sweep or a suite: measure it, print its table, write it down."""

import time
from collections.abc import Mapping, Sequence

from mmlska.analysis import timing
from mmlska.shipped import nearest

from . import report
from .measure import AGAIN, COMPILED, OURS, OURS_COMPILED, REFERENCE, Result, measure, measure_apart
from .settings import Settings
from .suites import COMMANDS, SUITES, Suite

COLUMNS = dict.fromkeys(('what', 'mode', 'map', 'computed by'), 'left') | dict.fromkeys(
    ('official (ms)', 'ours (ms)', 'speed-up', 'by the clock', 'noise', 'memory (MiB)', 'error'),
    'right',
)
MORE_COLUMNS = dict.fromkeys(('official compiled', 'ours compiled', 'share of copy'), 'right')
NOT_MEASURED = 'not measured'
Rows = Sequence[Result | tuple[Settings, str]]


def run_case(settings: Settings, json: str | None, command: str) -> None:
    """Measure one case in this process and print its table.

    Args:
        settings: What to measure.
        json: File to write, or None.
        command: How this was called.

    Raises:
        ValueError: If the settings are impossible.
        ArithmeticError: If ours computes something else than the reference does.
    """
    settings.check()
    if missing := settings.what_is_missing():
        raise ValueError(missing)
    result = measure(settings)
    print(table([result], settings.compile or result.copy_share is not None))
    print(f'\n{report.here_and_today(settings.device)}')
    print(f'{clock_name(settings)}; {len(result.samples[OURS])} rounds')
    if json:
        report.write_json(json, command, settings.device, [result.record()])


def clock_name(settings: Settings) -> str:
    """What the times are."""
    if settings.device != 'cpu':
        return 'time between two events on the device'
    if settings.threads == 1:
        return 'processor time of one thread'
    return f'time on the wall, {settings.threads} threads'


def run_sweep(settings: Settings, against: str, path: str, json: str | None, command: str) -> None:
    """Measure a case over kernel sizes or input sizes, each in a new process, and draw it.

    Args:
        settings: What all have in common.
        against: 'kernel-size' or 'input-size'.
        path: PNG to write.
        json: File to write, or None.
        command: How this was called.

    Raises:
        ValueError: If the settings are impossible.
    """
    # The drawing library is an optional one.
    from . import figures

    settings.check()
    if settings.case not in ('op', 'layer', 'block'):
        raise ValueError(f'a sweep takes the case op, layer or block, got {settings.case!r}')
    sweep, draw = figures.FIGURES[against]
    results = []
    for one in sweep(settings):
        report.tell(f'{one.name}, {one.mode}, {one.map_name}')
        results.append(measure_apart(one))
    print(table(results))
    draw(path, results)
    if json:
        report.write_json(json, command, settings.device, [result.record() for result in results])


def choose_suite(name: str, data: str | None, only: str | None, with_compiled: bool) -> Suite:
    """The cases of a suite by the titles of their tables.

    Args:
        name: Name of the suite.
        data: Folder of images for the evaluation, or None.
        only: Words in the titles of the tables that are wanted, or None.
        with_compiled: Whether cases that compile are to.

    Raises:
        ValueError: If there is no such suite, no such table, or a case is impossible.
    """
    if name not in SUITES:
        raise ValueError(f'no suite {name!r}: there are {", ".join(SUITES)}{nearest(name, SUITES)}')
    suite = SUITES[name](data)
    chosen = {title: cases for title, cases in suite.items() if (only or '') in title}
    if not chosen:
        raise ValueError(f'no table has {only!r} in its title: there are {"; ".join(suite)}')
    for cases in chosen.values():
        for settings in cases:
            settings.check()
    if with_compiled:
        return chosen
    return {title: [one.but(compile=False) for one in cases] for title, cases in chosen.items()}


def run_suite(
    name: str,
    suite: Suite,
    docs: str | None = None,
    json: str | None = None,
    command: str = '',
    max_minutes: float = float('inf'),
) -> None:
    """Measure a suite, each case in a process of its own, and print its tables.

    Each result is written to ``json`` once it is there. A case that fails is listed with its error,
    and the others go on.

    Args:
        name: Name of the suite.
        suite: Its cases, see :func:`choose_suite`.
        docs: Document whose part of this name is rewritten, or None.
        json: File to write, or None.
        command: How this was called.
        max_minutes: After so many no further case begins.

    Raises:
        ValueError: If there is no such device, or no such part of the document.
        SystemExit: If a case failed.
    """
    device = next(iter(suite.values()))[0].device
    timing.find_device(device)
    if docs:
        report.check_markers(docs, name)
    end = time.monotonic() + 60 * max_minutes
    total = sum(map(len, suite.values()))
    tables: dict[str, list] = {title: [] for title in suite}
    records, failures = [], []
    for title, settings in ((title, one) for title, cases in suite.items() for one in cases):
        start = time.monotonic()
        if start > end:
            row = settings, f'{NOT_MEASURED}: {max_minutes:g} minutes were over'
        else:
            row = measure_or_tell(settings)
        tables[title].append(row)
        if isinstance(row, Result):
            records.append(row.record())
        elif row[1].startswith('failed'):
            failures.append(f'{settings.name}, {settings.mode}, {settings.map_name}: {row[1]}')
        if json:
            report.write_json(json, command, device, records)
        done, seconds = sum(map(len, tables.values())), time.monotonic() - start
        report.tell(
            f'[{done}/{total}] {settings.name}, {settings.mode}, {settings.map_name}: '
            f'{seconds:.0f} s'
        )
    publish(name, tables, report.here_and_today(device), docs)
    if failures:
        raise SystemExit('\n'.join(failures))


def measure_or_tell(settings: Settings) -> Result | tuple[Settings, str]:
    """The result, or why there is none."""
    if missing := settings.what_is_missing():
        return settings, f'{NOT_MEASURED}: {missing}'
    try:
        return measure_apart(settings)
    except ImportError as error:
        return settings, f'{NOT_MEASURED}: {error}'
    except Exception as error:
        # Whatever it is, hours of other cases wait behind this one.
        return settings, f'failed: {report.failure(error)}'


def look_suite_up(name: str, suite: Suite, files: Sequence[str], docs: str | None) -> None:
    """Fill the tables of a suite with earlier results, and list the cases that have none.

    Args:
        name: Name of the suite.
        suite: Its cases, see :func:`choose_suite`.
        files: JSON files of :func:`run_suite` or ``gpu_first``, of one machine; none lists the
            cases.
        docs: Document whose part of this name is rewritten, or None.

    Raises:
        ValueError: If the files are of several machines, or the document has no such part.
    """
    records, machine = report.read_json(files) if files else ([], None)
    # A file of gpu_first tells of other things too.
    results = [Result.from_record(record) for record in records if 'samples' in record]
    found = {without_effort(one.settings): one for one in results}
    tables = {
        title: [found.get(without_effort(one), (one, NOT_MEASURED)) for one in cases]
        for title, cases in suite.items()
    }
    publish(name, tables, machine, docs)


def without_effort(settings: Settings) -> Settings:
    """What is measured, however often, and whether compiled as well."""
    return settings.but(rounds=1, max_seconds=1.0, compile=False)


def publish(name: str, tables: Mapping[str, Rows], machine: str | None, docs: str | None) -> None:
    """Print the tables with where, when and how they were made, and put them into a document."""
    lines = [f'Measured by `{COMMANDS[name]}` on {machine}.'] if machine else []
    for title, rows in tables.items():
        lines += [f'### {title}', table(rows, with_compiled=name == 'gpu')]
    text = '\n\n'.join(lines)
    print(text)
    if docs and machine:
        report.rewrite(docs, name, text)
    elif docs:
        # A page of empty rows tells nobody anything.
        number = sum(map(len, tables.values()))
        nothing = f'Nothing was measured yet. `{COMMANDS[name]}` measures {number} cases.'
        report.rewrite(docs, name, nothing)


def table(rows: Rows, with_compiled: bool = False) -> str:
    """Markdown table of results, and of settings with the reason why they have no result."""
    return report.table(
        COLUMNS | MORE_COLUMNS if with_compiled else COLUMNS,
        [
            cells(row, with_compiled) if isinstance(row, Result) else [*names(row[0]), row[1]]
            for row in rows
        ],
    )


def cells(result: Result, with_compiled: bool) -> list[str]:
    """Cells of a result."""
    ours, noise = result.speed_up(), result.speed_up(AGAIN)
    memory = [f'{result.bytes[name] / 2**20:.1f}' for name in (REFERENCE, OURS)]
    found = [
        *names(result.settings),
        ', '.join(result.forms) or '–',
        *(report.number(result.milliseconds(name)) for name in (REFERENCE, OURS)),
        f'**{ours.median:.2f}** [{ours.lower:.2f}, {ours.upper:.2f}]',
        f'{result.speed_up(clock="wall").median:.2f}',
        f'{noise.median:.2f} [{noise.lower:.2f}, {noise.upper:.2f}]',
        ' → '.join(memory),
        f'{max(result.errors.values()):.0e}' if result.errors else '–',
    ]
    if with_compiled:
        for name in (COMPILED, OURS_COMPILED):
            found.append(f'{result.speed_up(name).median:.2f}' if name in result.samples else '–')
        share = result.copy_share
        found.append('–' if share is None else f'{100 * share:.0f} %')
    return found


def names(settings: Settings) -> list[str]:
    """What was measured, in cells."""
    return [settings.name, settings.mode, settings.map_name]
