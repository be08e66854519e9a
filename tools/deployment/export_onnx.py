#!/usr/bin/env python
"""Write a trained detector or segmentor as an ONNX file, and try it beside PyTorch.

The file holds the network up to the maps of its head, or with --end2end all of it: boxes, scores,
labels and masks, or logits and the label map. Its input `image` is float32 of shape (N, 3, H, W),
normalised and padded as the metadata of the file tell; demo/onnx_demo.py runs it. A file whose
results differ from PyTorch's is not kept.
"""

import argparse
import os
import sys
from pathlib import Path

from mmlska.cli import OPTIONS_HELP, OptionsAction, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help='path of a config file, or the name of a shipped config')
    add('checkpoint', help='checkpoint file of that model')
    add('out', type=Path, metavar='OUT', help='where the file goes, such as model.onnx')
    add('--fuse', action='store_true', help='fuse norms into convolutions first')
    add('--fp16', action='store_true', help='compute the network in float16, half as large')
    add('--dynamic', action='store_true', help='take any batch, height and width')
    add('--end2end', action='store_true', help='go on to boxes and masks, or to the label map')
    add(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='what a file takes that is not dynamic (default: as the test pipeline tells)',
    )
    add('--opset', type=int, help="version of ONNX's operators, 18 or higher (default: torch's)")
    add(
        '--images',
        nargs='+',
        metavar='IMAGE',
        help='image files or folders to compare on (default: photographs that scikit-image ships)',
    )
    add('--max-images', type=int, default=8, help='compare on so many at most (default: 8)')
    add('--rounds', type=int, default=7, help='how often both are timed (default: 7)')
    add('--force', action='store_true', help='write over an existing OUT')
    add('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP)
    args = parser.parse_args()
    if args.dynamic and args.size:
        parser.error('--size is for a file that takes one size, --dynamic for one that takes any')
    if min(args.size or [1]) < 1 or args.max_images < 1 or args.rounds < 0:
        parser.error('--size and --max-images take positive numbers, --rounds none below 0')
    return args


def main() -> None:
    """Export, compare, and keep the file if it computes the same."""
    args = parse_args()
    from mmlska.analysis.onnx_export import ExportTask, export_and_check
    from mmlska.checkpoint.files import check_target
    from mmlska.deploy.onnx_files import ExportOptions

    task = ExportTask(
        args.config,
        args.checkpoint,
        options=ExportOptions(args.dynamic, args.fp16, args.opset),
        fused=args.fuse,
        end_to_end=args.end2end,
        size=tuple(args.size) if args.size else None,
        cfg_options=args.cfg_options,
    )
    with report_errors():
        args.out = check_target(args.out, ('.onnx',), args.force)
        check = export_and_check(task, args.out, args.images, args.max_images, args.rounds)
    print(f'\nlargest errors, and times of an image\n{check.describe()}\n')
    if check.failures:
        sys.exit(
            f'{os.path.basename(sys.argv[0])}: error: the file is removed, since\n  '
            + '\n  '.join(check.failures)
        )
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
