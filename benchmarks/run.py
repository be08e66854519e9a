"""What the command line tool does: measure a case, a sweep or a suite, and write it down."""

import itertools
import sys
from typing import Any

from mmlska.shipped import nearest

from . import report, suites
from .measure import measure, measure_apart
from .settings import Settings


def run_case(options: dict[str, Any], json: str | None, command: str) -> None:
    """Measure one case and print its table.

    Args:
        options: Fields of :class:`Settings`.
        json: File to write, or None.
        command: How this was called.

    Raises:
        ValueError: If the settings are impossible.
        ArithmeticError: If ours computes something else than the reference does.
    """
    settings = Settings(**options)
    settings.check()
    if missing := settings.what_is_missing():
        raise ValueError(missing)
    result = measure(settings)
    has_more = settings.compile or result.copy_share is not None
    print(report.table([result], has_more))
    print(f'\n{report.describe_machine(report.machine(settings.device))}')
    print(f'{clock_name(settings)}; {len(result.samples["ours"])} rounds')
    if json:
        report.write_json(json, [result], command, settings.device)


def clock_name(settings: Settings) -> str:
    """What the times are."""
    if settings.device != 'cpu':
        return 'time between two events on the device'
    if settings.threads == 1:
        return 'processor time of one thread'
    return f'time on the wall, {settings.threads} threads'


def run_sweep(
    options: dict[str, Any], against: str, path: str, json: str | None, command: str
) -> None:
    """Measure a case over kernel sizes or input sizes, each in a new process, and draw it.

    Args:
        options: Fields of :class:`Settings` that all have in common.
        against: 'kernel-size' or 'input-size'.
        path: PNG to write.
        json: File to write, or None.
        command: How this was called.

    Raises:
        ValueError: If the settings are impossible.
    """
    # The drawing library is an optional one.
    from . import figures

    settings = Settings(**options)
    settings.check()
    if settings.case not in ('op', 'layer', 'block'):
        raise ValueError(f'a sweep takes the case op, layer or block, got {settings.case!r}')
    sweep, draw = figures.FIGURES[against]
    results = []
    for one in sweep(settings):
        tell(f'{one.name}, {one.mode}, {one.map_name}')
        results.append(measure_apart(one))
    print(report.table(results))
    draw(path, results)
    if json:
        report.write_json(json, results, command, settings.device)


def run_suite(
    name: str,
    options: dict[str, Any],
    only: str | None = None,
    earlier: list[str] | None = None,
    docs: str | None = None,
    json: str | None = None,
    command: str = '',
) -> None:
    """Measure a suite, or look its results up, and print its tables.

    Args:
        name: Name of the suite.
        options: ``data``, the folder of images for the evaluation, where there is one.
        only: Words in the titles of the tables that are wanted, or None.
        earlier: JSON files with earlier results to put into the tables, instead of measuring.
        docs: Document whose part of this name is rewritten, or None.
        json: File to write, or None.
        command: How this was called.

    Raises:
        ValueError: If there is no such suite, no such device, or no such part of the document.
    """
    if name not in suites.SUITES:
        raise ValueError(
            f'no suite {name!r}: there are {", ".join(suites.SUITES)}{nearest(name, suites.SUITES)}'
        )
    suite = suites.choose_tables(suites.SUITES[name](options.get('data')), only)
    device = next(iter(suite.values()))[0].device
    if docs:
        report.check_markers(docs, name)
    if earlier is not None:
        results, machine = report.read_json(earlier) if earlier else ([], None)
        tables = suites.look_up(suite, results)
    else:
        for settings in itertools.chain(*suite.values()):
            settings.check()
        tables = suites.run_suite(suite, tell)
        machine = f'{report.describe_machine(report.machine(device))}, {report.today()}'
    text = suites.text_of(name, tables, machine)
    print(text)
    if docs:
        report.rewrite(docs, name, text)
    if json:
        report.write_json(json, suites.results_of(tables), command, device)


def tell(line: str) -> None:
    """Show progress beside the results."""
    print(line, file=sys.stderr, flush=True)
