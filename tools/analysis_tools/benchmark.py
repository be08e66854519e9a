#!/usr/bin/env python
"""Measure ours against the plain official order, in one process and in turns.

What is printed: median times; how many times faster ours is (median and quartiles of the ratios of
the rounds); the same by the clock on the wall; the reference against itself, which is the noise;
peak memory of both; and the largest relative difference of what both compute. A run in which they
differ by more than the dtype explains ends with an error.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from mmlska.cli import report_errors

# The profiler, which counts memory, tells of each start, and of memory that it did not see given.
os.environ.setdefault('KINETO_LOG_LEVEL', '6')
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'case',
        nargs='?',
        help='op (depth-wise cascade), layer (default), block (of VAN), backbone (VAN), detector '
        '(training step or inference of a detector or segmentor on random images), or evaluation '
        '(of a detector on the images of --data)',
    )
    add_case_options(parser)
    add_run_options(parser)
    add_output_options(parser)
    args = parser.parse_args()
    if args.case and args.suite:
        parser.error(f'--suite {args.suite} has its own cases: leave {args.case!r} out')
    if args.plot and args.suite:
        parser.error('--plot draws a sweep of one case: leave --suite out')
    if not args.suite and (args.only or args.list or args.earlier):
        parser.error('--only, --list and --from are for a --suite')
    if args.docs and not args.suite:
        parser.error('--docs takes the tables of a --suite')
    if args.docs and args.only:
        parser.error('--docs takes all tables of a suite: leave --only out')
    return args


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a case."""
    add = parser.add_argument_group('the case').add_argument
    add('--mode', help='forward (default), or train: forward and backward')
    add('--device', help='cpu (default), cuda, cuda:1 ...')
    add(
        '--dtype',
        help='float32 (default), bfloat16, float16 or float64; a backbone and a detector compute '
        'under autocast',
    )
    add('--layout', help='of the map: contiguous (default) or channels_last')
    add(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='N C H W of the map or the images; for a backbone, a detector and an evaluation also '
        'N SIZE or N H W (default: 1 64 128 128; backbone 2 3 512 512; detector 2 3 800 1280)',
    )
    add('--attention', help='type of the attention layer (default: LSKA)')
    add('--kernel-size', type=int, metavar='K', help="(default: the layer's own)")
    add('--arch', help='of the VAN (default: tiny)')
    add('--ffn-ratio', type=float, help='of the VAN block (default: 8)')
    add('--config', help="path or name of a config (default: the paper's Mask R-CNN tiny)")
    add(
        '--data',
        metavar='FOLDER',
        help='for an evaluation: folder with images/val and annotations/instances_val.json (COCO)',
    )
    add('--backend', help='what ours is to take: auto (default), or a form by name')
    add('--fuse', action='store_true', help='fold ours for inference')


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add how it is measured."""
    add = parser.add_argument_group('the measurement').add_argument
    add('--compile', action='store_true', help='measure both by torch.compile as well')
    add(
        '--allocator',
        help='what becomes of freed memory on the CPU: keep (default for op and layer), return, or '
        'default, as the C library decides (default for the others)',
    )
    add('--threads', type=int, help='of PyTorch on the CPU (default: 1)')
    add('--rounds', type=int, help='how often each variant is timed (default: 9)')
    add(
        '--max-seconds',
        type=float,
        metavar='S',
        help='begin no further round after so many, once three are done (default: 60)',
    )
    add('--suite', help='measure a list of cases, each in a new process: cpu, gpu or maps')
    add('--only', metavar='WORDS', help='of a suite only the tables with these words in the title')
    add('--list', action='store_true', help='only list the cases of the suite')
    add(
        '--from',
        dest='earlier',
        nargs='+',
        metavar='FILE',
        help='fill the tables of the suite with the results of these JSON files, measure nothing',
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add where the results go."""
    add = parser.add_argument_group('the results').add_argument
    add('--json', metavar='FILE', help='write all settings and results to this file')
    add('--docs', metavar='FILE', help='rewrite the tables of the suite in this document')
    add('--plot', metavar='FILE', help='measure a sweep of the case and draw it into this PNG')
    add(
        '--against',
        choices=['kernel-size', 'input-size'],
        default='kernel-size',
        help='what --plot sweeps (default: kernel-size, for four kinds of attention)',
    )


def full_shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Number, channels, height and width, where channels and width may be left out."""
    if shape is None or len(shape) not in (2, 3):
        return shape and tuple(shape)
    return (shape[0], 3, shape[1], shape[-1])


def main() -> None:
    """Measure and print."""
    args = parse_args()
    with report_errors():
        from benchmarks import run

        own = ('suite', 'only', 'list', 'earlier', 'json', 'docs', 'plot', 'against')
        options = {
            name: value
            for name, value in vars(args).items()
            if name not in own and value not in (None, False)
        }
        if args.shape:
            options['shape'] = full_shape(args.shape)
        command = shlex.join(['python', *sys.argv])
        if args.suite:
            earlier = [] if args.list else args.earlier
            run.run_suite(args.suite, options, args.only, earlier, args.docs, args.json, command)
        elif args.plot:
            run.run_sweep(options, args.against, args.plot, args.json, command)
        else:
            run.run_case(options, args.json, command)


if __name__ == '__main__':
    main()
