#!/usr/bin/env python
"""Train a detector, a segmentor or a classifier."""

import argparse

from mmlska.cli import (
    add_config_options,
    add_launch_options,
    parse_launch_arguments,
    report_errors,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_options(parser)
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go (default: work_dir of the config, else '
        './work_dirs/<config name>)',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train with automatic mixed precision (needs a GPU)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size, from the base_batch_size of '
        'the auto_scale_lr entry of the config',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or from the newest whole one in the work dir if none is '
        'named',
    )
    parser.add_argument(
        '--no-data-check',
        action='store_true',
        help='train although the annotation files were not looked into, or have faults',
    )
    add_launch_options(parser)
    return parse_launch_arguments(parser)


def main() -> None:
    """Prepare the config and train."""
    args = parse_args()
    from mmlska.checkpoint import CheckpointError
    from mmlska.engine.launch import build_runner, prepare_training

    with report_errors():
        cfg = prepare_training(
            args.config,
            options=args.cfg_options,
            work_dir=args.work_dir,
            amp=args.amp,
            auto_scale_lr=args.auto_scale_lr,
            resume=args.resume,
            launcher=args.launcher,
            data_check=not args.no_data_check,
        )
    # What fails in a training keeps its traceback, but for weights that a file cannot give.
    with report_errors(CheckpointError):
        build_runner(cfg).train()


if __name__ == '__main__':
    main()
