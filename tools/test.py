#!/usr/bin/env python
"""Evaluate a checkpoint of a detector or a segmentor on the test set of its config."""

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
    parser.add_argument('checkpoint', help='checkpoint file to evaluate')
    parser.add_argument(
        '--work-dir',
        help='where the log and the figures (json) go (default: work_dir of the config, else '
        './work_dirs/<config name>)',
    )
    parser.add_argument(
        '--out',
        help='keep the predictions: a .pkl file for a detector, a folder of label maps (png) '
        'for a segmentor',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir',
        help='draw the predictions into this folder; for a detector it lies below '
        '<work dir>/<time stamp>, for a segmentor the path is taken as given',
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds for which --show holds each picture (default: 2)',
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation, as the config defines it'
    )
    parser.add_argument(
        '--fuse',
        action='store_true',
        help='fuse norms into convolutions first: the same figures in less time',
    )
    add_launch_options(parser)
    return parse_launch_arguments(parser)


def main() -> None:
    """Prepare the config and evaluate."""
    args = parse_args()
    from mmlska.engine.launch import build_test_runner, prepare_testing

    with report_errors():
        cfg = prepare_testing(
            args.config,
            args.checkpoint,
            options=args.cfg_options,
            work_dir=args.work_dir,
            out=args.out,
            show=args.show,
            show_dir=args.show_dir,
            wait_time=args.wait_time,
            tta=args.tta,
            launcher=args.launcher,
            fuse=args.fuse,
        )
    build_test_runner(cfg, args.out).test()


if __name__ == '__main__':
    main()
