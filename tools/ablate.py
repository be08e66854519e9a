#!/usr/bin/env python
r"""Train a config with layers added at places, and compare: figures, intervals, costs.

For example:

  python tools/ablate.py mmdet::retinanet/retinanet_r50_fpn_1x_coco \
      --add LSKA:kernel_size=7,11,23 ECA --where after_conv3@2,3,4 neck --seeds 3

Interrupted, the same command goes on. Configs, runs and reports stand in the work dir.
"""

import argparse
import sys
from pathlib import Path

from mmlska.cli import OPTIONS_HELP, OptionsAction, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        'config',
        help='base config: a path, the name of a shipped config, or LIBRARY::FOLDER/NAME; or a '
        'YAML or Python file that holds these settings under the names of the options, and base',
    )
    add(
        '--add',
        nargs='+',
        metavar='LAYER',
        help='layers, as TYPE:OPTION=VALUE,VALUE:OPTION=VALUE; a cell for each combination of '
        'values; A+B puts two layers one after the other',
    )
    add(
        '--where',
        nargs='+',
        metavar='PLACE',
        help='places: a plugin position of the backbone with its stages as in after_conv3@2,3,4; '
        'neck (each level of the pyramid); attention (the attention of VAN is replaced)',
    )
    add('--seeds', type=int, help='how many seeds, from 0 on (default: 3)')
    add('--weights', metavar='FILE', help='checkpoint of the base that all cells start from')
    add(
        '--start',
        nargs='+',
        choices=['identity', 'plain'],
        help='how layers enter with --weights, a cell for each: as the identity (the default), or '
        'with their own random start',
    )
    add('--metric', nargs='+', help='figures to compare, as the evaluation logs them')
    add('--work-dir', help='where everything goes (default: work_dirs/ablation_<base>)')
    add('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP)
    add('--dry-run', action='store_true', help='write the configs, build each cell, train nothing')
    add('--jobs', type=int, default=1, help='trainings at once on this machine (default: 1)')
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='pytorch: torchrun with --gpus processes; slurm: each run is handed to sbatch, and '
        'the same command collects what has finished',
    )
    add('--gpus', type=int, default=1, help='processes of one training (default: 1)')
    add('--slurm-args', default='', help='more arguments of sbatch, in one word')
    add('--no-pictures', action='store_true', help='leave predictions out of the page')
    args = parser.parse_args()
    if args.jobs < 1 or args.gpus < 1:
        parser.error(f'--jobs and --gpus are at least 1, got {args.jobs} and {args.gpus}')
    return args


def settings_of(args: argparse.Namespace) -> dict:
    """Settings of the file, if one is named, and of the command line, which comes first."""
    from mmlska.analysis.ablation import read_settings

    settings = read_settings(args.config) or dict(base=args.config)
    names = ('add', 'where', 'seeds', 'weights', 'start', 'metric', 'work_dir', 'cfg_options')
    return settings | {name: value for name in names if (value := getattr(args, name)) is not None}


def main() -> None:
    """Run the ablation, and print its table."""
    args = parse_args()
    from mmlska.analysis import ablation

    script = Path(__file__).with_name('train.py')
    launch = ablation.Launch(script, args.launcher, args.gpus, args.jobs, args.slurm_args)
    with report_errors():
        spec = ablation.make_spec(settings_of(args))
        if args.dry_run:
            print(ablation.describe(spec, launch))
            return
        try:
            rows = ablation.run_ablation(spec, launch, pictures=not args.no_pictures)
        except ablation.InterruptedRunsError as error:
            print(error, file=sys.stderr)
            raise SystemExit(130) from None
        print(ablation.summary(spec, rows))
    print(f'reports: {spec.work_dir}/report.md, .csv, .tex, .json, .html')


if __name__ == '__main__':
    main()
