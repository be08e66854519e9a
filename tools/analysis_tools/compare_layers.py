#!/usr/bin/env python
"""Compare all attention layers, and all backbones, at equal input.

Parameters and multiply-adds are counted; memory is what training keeps for the backward pass of
one input in float32; time is that of a forward pass on this CPU, as a multiple of the first row's
in the same run (median of interleaved rounds; the last row repeats the first one and shows the
noise).
"""

import argparse

from mmlska.cli import report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['layers', 'backbones'], help='what to compare')
    parser.add_argument(
        '--in-channels',
        type=int,
        default=256,
        metavar='C',
        help='channels of the map that layers work on (default: 256)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the input: of the map for layers (default: 50 84, a photograph of 800 x 1333 '
        'at stride 16), of the image for backbones (default: 512 512)',
    )
    parser.add_argument(
        '--memory-shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the input for the memory (default: 50 84 for layers, 800 1333 for backbones)',
    )
    parser.add_argument(
        '--rounds', type=int, default=7, help='how often each is timed (default: 7)'
    )
    parser.add_argument(
        '--figures',
        metavar='FOLDER',
        help='also draw the data flow and the receptive fields of the layers into this folder',
    )
    args = parser.parse_args()
    if args.rounds < 1 or args.in_channels < 1:
        parser.error('--rounds and --in-channels take positive numbers')
    return args


def main() -> None:
    """Compare and print."""
    args = parse_args()
    from benchmarks import comparison

    with report_errors():
        if args.what == 'layers':
            table = comparison.layer_table(
                args.in_channels, args.shape or (50, 84), args.memory_shape or (50, 84), args.rounds
            )
        else:
            table = comparison.backbone_table(
                args.shape or (512, 512), args.memory_shape or (800, 1333), args.rounds
            )
        print(f'\n{table}')
        if args.figures:
            comparison.draw_figures(args.figures)


if __name__ == '__main__':
    main()
