#!/usr/bin/env python
"""The LSKA paper's comparison: parameters (M) and multiply-adds (G) of VAN classifiers.

One row per architecture and kind of attention, one column per kernel size. The 1000-class head is
included, as in the paper.
"""

import argparse
import json
from pathlib import Path

from mmlska.cli import report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--arch',
        nargs='+',
        default=['tiny', 'small', 'base'],
        help='VAN architectures: tiny small base large, b0 to b6 (default: tiny small base)',
    )
    parser.add_argument(
        '--attention',
        nargs='+',
        default=['LKATrivial', 'LSKATrivial', 'LKA', 'LSKA'],
        help='kinds of attention (default: LKATrivial LSKATrivial LKA LSKA)',
    )
    parser.add_argument(
        '--kernel-size',
        nargs='+',
        type=int,
        default=[7, 11, 23, 35, 53, 65],
        metavar='K',
        help='kernel sizes (default: 7 11 23 35 53 65)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        default=[224],
        metavar='PIXELS',
        help='height and width of the image, or one number for a square (default: 224)',
    )
    parser.add_argument('--json', metavar='FILE', help='write the exact counts to this file')
    parser.add_argument('--markdown', action='store_true', help='print a Markdown table')
    args = parser.parse_args()
    if len(args.shape) > 2 or min(args.shape) < 1:
        parser.error(f'--shape takes one or two positive numbers, got {args.shape}')
    return args


def main() -> None:
    """Count and print."""
    args = parse_args()
    from mmlska.analysis import complexity

    shape = (args.shape[0], args.shape[-1])
    with report_errors():
        records = complexity.compare_van(args.arch, args.attention, args.kernel_size, shape)
        if args.json:
            Path(args.json).write_text(json.dumps(records, indent=1) + '\n', encoding='utf-8')
    rows = complexity.comparison_rows(records)
    print(f'\nparameters (M) / multiply-adds (G) at {shape[0]} x {shape[1]}, 1000 classes\n')
    print(complexity.format_table(rows, args.markdown))
    print(f'\n{complexity.WHAT_IS_COUNTED}')


if __name__ == '__main__':
    main()
