#!/usr/bin/env python
"""Parameters and multiply-adds of a detector or segmentor, part by part, without a data set."""

import argparse

from mmlska.cli import add_config_options, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_options(parser)
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='height and width of the image, or one number for a square '
        '(default: 800 1280 for a detector, 512 512 for a segmentor)',
    )
    args = parser.parse_args()
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape takes one or two positive numbers, got {args.shape}')
    return args


def main() -> None:
    """Count and print."""
    args = parse_args()
    from mmlska.analysis import complexity
    from mmlska.engine.config import load_config

    with report_errors():
        cfg = load_config(args.config, args.cfg_options)
        shape = args.shape or complexity.default_shape(cfg)
        model = complexity.build_for_counting(cfg)
        parts = complexity.count_model(model, (shape[0], shape[-1]))
    height, width = complexity.padded_shape(model, (shape[0], shape[-1]))
    print(f'{args.config}: {type(model).__name__}, one image of {height} x {width} (H x W)\n')
    print(complexity.format_table(complexity.part_rows(parts)))
    print(f'\n{complexity.WHAT_IS_COUNTED}')


if __name__ == '__main__':
    main()
