#!/usr/bin/env python
"""Check the data that a config names: files, images, annotations, label maps, names of classes.

Every fault is told with its file, its annotations and a remedy; the exit status is 1 if one is an
error. Samples with their labels are drawn on a sheet.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmlska.cli import add_config_options, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument(
        '--split',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val'],
        help='which data sets of the config (default: train val)',
    )
    parser.add_argument(
        '--fix',
        metavar='OUT',
        help='write annotation files with the safe repairs into this folder, and say each repair',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=os.cpu_count(),
        metavar='N',
        help='processes that decode images (default: one for each core)',
    )
    parser.add_argument(
        '--sheet',
        metavar='FOLDER',
        default='data_check',
        help='where the sheets of samples go (default: data_check)',
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs takes a positive number, got {args.jobs}')
    return args


def show_progress(results: Iterable, total: int) -> Iterator:
    """Hand results on, and a bar to stderr."""
    from mmengine.utils import ProgressBar

    bar = ProgressBar(total, file=sys.stderr) if total else None
    for result in results:
        yield result
        bar.update()
    if total:
        print(file=sys.stderr)


def print_report(report) -> None:
    """Print counts and faults of one data set."""
    from mmlska.data import CocoSource, rare_classes

    source = report.source
    place = source.path if isinstance(source, CocoSource) else source.label_folder
    print(f'\n{source.key}: {report.num_images} images, {place}')
    if report.counts:
        columns = ('small', 'medium', 'large') if isinstance(source, CocoSource) else ('pixels',)
        width = max(map(len, report.counts))
        print('  ' + 'class'.ljust(width) + ''.join(f'{name:>13}' for name in columns))
        for name, numbers in report.counts.items():
            print('  ' + name.ljust(width) + ''.join(f'{number:>13,}' for number in numbers))
    faults = [*report.faults, *rare_classes(report)]
    print('\n'.join(map(str, faults)) or '  no fault')


def draw_sheet(source, folder: Path) -> None:
    """Write the sheet of one data set."""
    from mmlska.data import contact_sheet

    sheet = contact_sheet(source)
    if sheet is not None:
        path = folder / f'{source.key}.jpg'
        sheet.save(path, quality=90)
        print(f'  samples with their labels: {path}')


def write_repaired(source, folder: Path) -> None:
    """Write the annotation file of one data set with the safe repairs."""
    import json

    from mmlska.data import read_annotations, repair

    data, faults = read_annotations(source.path)
    if data is None:
        print(f'  {source.path}: nothing can be repaired')
        return
    mended, lines = repair(data)
    if not lines and not faults:
        print(f'  {source.path}: no repair is both needed and safe')
        return
    path = folder / f'{source.key.split("_")[0]}_{Path(source.path).name}'
    path.write_text(json.dumps(mended), encoding='utf-8')
    print(f'  repaired: {path}')
    print('\n'.join(f'    {line}' for line in [*lines, *(['wrote UTF-8'] if faults else [])]))


def main() -> None:
    """Check, print, draw and repair."""
    args = parse_args()
    from mmlska.data import find_sources
    from mmlska.engine.config import load_config
    from mmlska.engine.folders import make_folder

    with report_errors():
        cfg = load_config(args.config, args.cfg_options)
        sources, others = find_sources(cfg, tuple(args.split))
        if not sources and not others:
            raise ValueError(f'{args.config} has no data set for {", ".join(args.split)}')
        make_folder(args.sheet, '--sheet')
        if args.fix:
            make_folder(args.fix, '--fix')
    try:
        wrong = [check(source, args) for source in sources]
    except KeyboardInterrupt:
        raise SystemExit('\ninterrupted') from None
    for other in others:
        print(f'not checked: {other}')
    if any(wrong):
        raise SystemExit('check_dataset.py: error: the data has faults, see above')


def check(source, args: argparse.Namespace) -> bool:
    """Check, print, draw and repair one data set; whether it has errors."""
    from mmlska.data import CocoSource, check_source, has_errors

    report = check_source(source, args.jobs, show_progress)
    print_report(report)
    draw_sheet(source, Path(args.sheet))
    if args.fix and isinstance(source, CocoSource):
        write_repaired(source, Path(args.fix))
    return has_errors(report.faults)


if __name__ == '__main__':
    main()
