#!/usr/bin/env python
"""Measure what the options of configs/_base_/training_options.py cost and save on the CPU.

training:   one training step of each backbone with an option, as a multiple of one without (median
            of interleaved rounds), and the peak of its memory.
evaluation: made-up results of a detector, evaluated with pycocotools and with faster-coco-eval.
"""

import argparse

from mmlska.cli import report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['training', 'evaluation'], help='what to measure')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=3,
        metavar=('N', 'H', 'W'),
        default=(2, 512, 512),
        help='batch size and size of the images (default: 2 512 512)',
    )
    parser.add_argument(
        '--rounds', type=int, default=7, help='how often each step is timed (default: 7)'
    )
    parser.add_argument(
        '--images', type=int, default=5000, help='images of the evaluation (default: 5000)'
    )
    args = parser.parse_args()
    if min(args.rounds, args.images, *args.shape) < 1:
        parser.error('--shape, --rounds and --images take positive numbers')
    return args


def main() -> None:
    """Measure and print."""
    args = parse_args()
    from benchmarks.option_costs import evaluation_table, training_table

    with report_errors():
        if args.what == 'evaluation':
            table = evaluation_table(args.images)
        else:
            batch_size, *size = args.shape
            table = training_table((batch_size, 3, *size), args.rounds)
        print(f'\n{table}')


if __name__ == '__main__':
    main()
