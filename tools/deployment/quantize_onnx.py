#!/usr/bin/env python
"""Quantise an exported model to int8, and time and evaluate it before and after.

The ranges of activations are measured on images, best some hundred of the training set, prepared as
the test pipeline of the config does. The first and the last layers stay float32.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmlska.cli import add_config_options, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    add = parser.add_argument
    add('model', type=Path, metavar='MODEL', help='what export_onnx.py has written, of float32')
    add('out', type=Path, metavar='OUT', help='where the int8 file goes')
    add('--images', required=True, nargs='+', help='image files or folders to measure ranges on')
    add('--num-images', type=int, default=100, help='most images, spread evenly (default: 100)')
    add(
        '--percentile',
        type=float,
        help='cut ranges off at this percentile, such as 99.99 (default: at the largest value)',
    )
    add(
        '--keep',
        nargs='+',
        default=[],
        metavar='NAME',
        help='more layers that stay float32: those with this in the name of their weights',
    )
    add(
        '--evaluate',
        action='store_true',
        help='evaluate both files on the test set of the config, by its metrics',
    )
    add('--rounds', type=int, default=7, help='how often both are timed (default: 7)')
    add('--force', action='store_true', help='write over an existing OUT')
    args = parser.parse_args()
    if min(args.num_images, args.rounds) < 1 or not 0 < (args.percentile or 100) <= 100:
        parser.error('--num-images and --rounds take positive numbers, --percentile one up to 100')
    return args


def main() -> None:
    """Quantise, and compare."""
    args = parse_args()
    from mmlska.analysis.onnx_check import time_in_turns
    from mmlska.checkpoint.files import check_target
    from mmlska.deploy.onnx_files import OnnxModel
    from mmlska.deploy.quantizing import quantise
    from mmlska.engine.config import load_config
    from mmlska.engine.media_files import list_images
    from mmlska.engine.onnx_evaluation import evaluate_file, prepared_images

    with report_errors():
        if not args.model.is_file():
            raise FileNotFoundError(f'no file {str(args.model)!r}')
        args.out = check_target(args.out, ('.onnx',), args.force)
        cfg = load_config(args.config, args.cfg_options)
        paths = list_images(args.images)
        paths = [paths[i] for i in range(0, len(paths), -(-len(paths) // args.num_images))]
        images = prepared_images(cfg, paths)
        count = quantise(args.model, args.out, images, args.percentile, args.keep)
        files = [args.model, args.out]
        figures = [
            evaluate_file(args.config, file, args.cfg_options) if args.evaluate else {}
            for file in files
        ]
        (image,) = prepared_images(cfg, paths[:1])
        runs = {str(file): partial(OnnxModel(file), image) for file in files}
    times = [time.median for time in time_in_turns(runs, 1, args.rounds).values()]
    print(f'\nranges measured on {count} images\n')
    print_table(files, times, figures)


def print_table(
    files: Sequence[Path], times: Sequence[float], figures: Sequence[dict[str, float]]
) -> None:
    """Print size, time and figures, a column a file."""
    rows = [
        ('', *(file.name for file in files)),
        ('MB', *(f'{file.stat().st_size / 1e6:.1f}' for file in files)),
        ('ms', *(f'{1e3 * time:.1f}' for time in times)),
    ]
    # mmdet has no figures of a detector that finds nothing.
    names = dict.fromkeys(name for found in figures for name in found)
    rows += [(name, *(f'{found.get(name, 0):.4g}' for found in figures)) for name in names]
    width = max(len(file.name) for file in files) + 2
    for name, *cells in rows:
        print(f'{name:20}' + ''.join(f'{cell:>{width}}' for cell in cells))


if __name__ == '__main__':
    main()
