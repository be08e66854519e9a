#!/usr/bin/env python
"""Quantise an exported model to int8, and evaluate it before and after.

The ranges of activations are measured on images, best some hundred of the training set, prepared as
the test pipeline of the config does.
"""

import argparse
from pathlib import Path

from mmlska.cli import add_config_options, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
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
        '--evaluate',
        action='store_true',
        help='evaluate both files on the test set of the config; segmentors only',
    )
    args = parser.parse_args()
    if args.num_images < 1 or not 0 < (args.percentile or 100) <= 100:
        parser.error('--num-images takes a positive number, --percentile one up to 100')
    return args


def main() -> None:
    """Quantise, and compare."""
    args = parse_args()
    from mmlska.deploy.quantizing import quantise
    from mmlska.engine.config import load_config
    from mmlska.engine.media_files import list_images
    from mmlska.engine.onnx_evaluation import evaluate_file, prepared_images

    with report_errors():
        if not args.model.is_file():
            raise FileNotFoundError(f'no file {str(args.model)!r}')
        cfg = load_config(args.config, args.cfg_options)
        paths = list_images(args.images)
        paths = [paths[i] for i in range(0, len(paths), -(-len(paths) // args.num_images))]
        count = quantise(args.model, args.out, prepared_images(cfg, paths), args.percentile)
        files = [args.model, args.out]
        figures = [
            evaluate_file(args.config, file, args.cfg_options) if args.evaluate else {}
            for file in files
        ]
    print(f'\nranges measured on {count} images')
    for file, found in zip(files, figures, strict=True):
        words = ', '.join(f'{key} {value:.2f}' for key, value in found.items())
        print(f'{file}: {file.stat().st_size / 1e6:.1f} MB{", " if words else ""}{words}')


if __name__ == '__main__':
    main()
