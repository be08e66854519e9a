"""Command line of the package: ``python -m mmlska check``, ``configs``, ``tune`` and ``yolo``."""

import argparse
import signal
import sys
from collections.abc import Sequence

from mmlska import __version__
from mmlska.environment import collect, diagnose, format_report
from mmlska.shipped import match_configs, shipped_configs

EXAMPLES = """examples:
  python -m mmlska check
  python -m mmlska configs
  python -m mmlska configs retinanet
  python -m mmlska configs 'mask-rcnn*tiny*'
  python -m mmlska tune
  python -m mmlska yolo detect train model=mine.yaml data=mine-data.yaml
"""


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m mmlska',
        description='Large-kernel attention for OpenMMLab detectors and segmentors.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'mmlska {__version__}')
    commands = parser.add_subparsers(
        dest='command', required=True, metavar='{check,configs,tune,yolo}'
    )
    about = 'say what is installed, what is missing or broken, and how to repair it'
    check = commands.add_parser(
        'check', help=about, description=f'{about}. The exit status is 1 if anything is wrong.'
    )
    check.set_defaults(run=run_check)
    about = 'print the paths of the shipped configs'
    configs = commands.add_parser(
        'configs', help=about, description=f'{about}. The exit status is 1 if none matches.'
    )
    configs.add_argument(
        'pattern',
        nargs='?',
        help="a glob, such as 'mask-rcnn*tiny*' or 'van/*', or a part of the path; default: all",
    )
    configs.set_defaults(run=run_configs)
    about = 'measure on this machine which forms of the large kernels are faster, and remember it'
    tune = commands.add_parser(
        'tune',
        help=about,
        description=f'{about}. That takes some minutes on a quiet machine, one GPU or one '
        'thread of the CPU. Every later run reads the file.',
    )
    tune.add_argument('--device', help='cuda, cuda:1 ... or cpu (default: the GPU if there is one)')
    tune.add_argument(
        '--max-minutes',
        type=float,
        default=4,
        metavar='M',
        help='begin no further measurement after so many (default: 4)',
    )
    tune.add_argument(
        '--output',
        metavar='FILE',
        help='file to write (default: the one that is read: $MMLSKA_TUNED, else mmlska/tuned.json '
        "in the user's cache)",
    )
    tune.set_defaults(run=run_tune)
    about = "pass a command line on to Ultralytics' yolo, which then knows our layers"
    # No word of it begins an option of ours, so that --help is passed on too.
    yolo = commands.add_parser('yolo', help=about, add_help=False, prefix_chars=' ')
    yolo.add_argument('arguments', nargs=argparse.REMAINDER)
    yolo.set_defaults(run=run_yolo)
    return parser.parse_args(arguments)


def run_check(_: argparse.Namespace) -> int:
    """Print the state of the environment; 1 if anything is wrong."""
    findings = diagnose(collect())
    print(format_report(findings))
    return int(any(finding.problem for finding in findings))


def run_configs(args: argparse.Namespace) -> int:
    """Print the paths of the shipped configs; 1 if none matches."""
    try:
        paths = match_configs(args.pattern) if args.pattern else shipped_configs().values()
    except (FileNotFoundError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(*paths, sep='\n')
    return 0


def run_tune(args: argparse.Namespace) -> int:
    """Measure this machine and write down what is faster; 1 if that is not possible."""
    from mmlska.analysis import tuning

    try:
        tuning.run(args.device, args.max_minutes, args.output)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def run_yolo(args: argparse.Namespace) -> int:
    """Run ``yolo`` with our layers; its own exit status, or 1 where it is not installed."""
    from mmlska.bridges import ultralytics

    ultralytics.run_yolo(args.arguments)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    args = parse_args(arguments)
    return args.run(args)


if __name__ == '__main__':
    # A reader that has seen enough, such as `head`, ends the program without a traceback. Windows
    # has no such signal.
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
