#!/usr/bin/env python
"""Time PyTorch's own depth-wise convolutions on the maps of VAN-LSKA.

For each stage the four convolutions of LSKA and the one of the FFN: forward, gradient of the map,
gradient of the weights; contiguous (on a GPU PyTorch's own kernels), channels_last (on a GPU
cuDNN) and compiled; beside the time in which a copy moves as many bytes. Milliseconds, medians of
rounds in which the variants take turns.
"""

import argparse
import shlex
import sys

from mmlska.cli import report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cuda', help='cuda, cuda:1 ... or cpu (default: cuda)')
    parser.add_argument(
        '--arch',
        nargs='+',
        default=['tiny', 'base'],
        help='VAN architectures (default: tiny base)',
    )
    parser.add_argument(
        '--stage',
        nargs='+',
        type=int,
        default=[1, 2, 3, 4],
        metavar='S',
        help='stages, the first one being 1 (default: 1 2 3 4)',
    )
    parser.add_argument(
        '--batch-size',
        nargs='+',
        type=int,
        default=[2, 16],
        metavar='N',
        help='images at once (default: 2 16)',
    )
    parser.add_argument(
        '--dtype',
        nargs='+',
        default=['float32', 'bfloat16', 'float16'],
        help='dtypes (default: float32 bfloat16 float16)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=[800, 1280],
        metavar=('H', 'W'),
        help='size of the image (default: 800 1280)',
    )
    parser.add_argument(
        '--kernel-size', type=int, default=23, metavar='K', help='kernel of LSKA (default: 23)'
    )
    parser.add_argument(
        '--rounds', type=int, default=9, help='how often each is timed (default: 9)'
    )
    parser.add_argument(
        '--max-seconds',
        type=float,
        default=1.0,
        metavar='SECONDS',
        help='begin no further round of a row after this time, once three are done (default: 1)',
    )
    parser.add_argument(
        '--skip-compiled',
        action='store_true',
        help='leave torch.compile out, which takes some seconds for each row',
    )
    parser.add_argument(
        '--json', metavar='FILE', help='write all rows to this file, after each one anew'
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds takes a positive number, got {args.rounds}')
    return args


def main() -> None:
    """Measure and print."""
    args = parse_args()
    from mmengine.utils import track_iter_progress

    from benchmarks import depthwise_baseline as baseline
    from benchmarks import report

    with report_errors():
        cases = baseline.list_cases(
            args.arch, args.stage, args.batch_size, args.dtype, tuple(args.shape), args.kernel_size
        )
        baseline.find_device(args.device)
        rows = []
        for case in track_iter_progress(cases):
            rows += baseline.measure(
                [case], args.device, args.rounds, not args.skip_compiled, args.max_seconds
            )
            if args.json:
                baseline.write_json(args.json, rows, shlex.join(sys.argv), args.device)
    print(f'\n{report.describe_machine(report.machine(args.device))}, {report.today()}\n')
    print(baseline.table(rows))


if __name__ == '__main__':
    main()
