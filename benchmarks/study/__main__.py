"""Train, measure, judge, and write ``docs/study.md``; interrupted, the same command goes on."""

import argparse
import os
import sys
from pathlib import Path

from mmlska.cli import report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.study', description=__doc__)
    add = parser.add_argument
    add(
        '--scale',
        choices=['full', 'quick', 'mini'],
        default='full',
        help='full: hours on two cores; quick: fewer and shorter trainings; mini: a minute or '
        'two, to see that it runs through (default: full)',
    )
    add('--work-dir', type=Path, help='where everything goes (default: work_dirs/study_SCALE)')
    add('--page', type=Path, help='page to write (default: docs/study.md; mini: in the work dir)')
    add('--jobs', type=int, default=2, help='trainings at once (default: 2)')
    add(
        '--publish',
        action='store_true',
        help='keep weights of the finished study in the package, each with its card, and stop',
    )
    args = parser.parse_args()
    args.work_dir = args.work_dir or Path('work_dirs') / f'study_{args.scale}'
    default_page = args.work_dir / 'study.md' if args.scale == 'mini' else Path('docs/study.md')
    args.page = args.page or default_page
    return args


def main() -> None:
    """Run the study."""
    # More threads only make the trainings wait for each other.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    args = parse_args()
    from mmlska.analysis.ablation import InterruptedRunsError

    from .publish import publish
    from .run import run_study

    with report_errors():
        if args.publish:
            for name in publish(args.scale, args.work_dir):
                print(f'mmlska://{name}')
            return
        try:
            claims = run_study(args.scale, args.work_dir, args.page, args.jobs)
        except InterruptedRunsError as error:
            print(error, file=sys.stderr)
            raise SystemExit(130) from None
    for claim in claims:
        print(f'{claim.verdict:>27}  {claim.text}: {claim.figure}')
    print(f'\n{args.page}, {args.work_dir / "report.html"}')


if __name__ == '__main__':
    main()
