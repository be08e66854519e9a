"""Rewrite the weights of a VAN in other names, or turn its attention into another one."""

import argparse
import sys
from functools import partial


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Rewrite the weights of a VAN, or of a detector or segmentor with one, in the '
        'names of mmlska or of another codebase. The naming of SRC is recognised. Loading needs no '
        'conversion: configs take every naming as it is.'
    )
    parser.add_argument('src', help='checkpoint to read: .pth, .pth.tar or .safetensors')
    parser.add_argument('dst', help='checkpoint to write; the suffix decides the format')
    parser.add_argument(
        '--to',
        default='mmlska',
        choices=['mmlska', 'mmpretrain', 'transformers', 'official', 'official-detection'],
        help='names to write: mmlska (default), mmpretrain (with the prefix "backbone."), '
        'transformers (with "van.", as VanForImageClassification saves them), official '
        '(classification code of LSKA and VAN), official-detection (its detection and '
        'segmentation code)',
    )
    parser.add_argument('--force', action='store_true', help='write over an existing DST')
    add_warm_start(
        parser.add_argument_group(
            'warm start',
            'Turn LKA or LSKA into LKA or LSKA of any legal kernel size: a start for fine-tuning, '
            'not the published model of that kernel. A table tells what it keeps.',
        )
    )
    args = parser.parse_args()
    if (args.calibrate or args.images) and not wants_warm_start(args):
        parser.error('--calibrate and --images need --attention, --kernel-size or --dilation')
    return args


def add_warm_start(group: argparse._ArgumentGroup) -> None:
    """Add the options of a warm start."""
    group.add_argument('--attention', choices=['lska', 'lka'], help='default: that of SRC')
    group.add_argument('--kernel-size', type=int, metavar='K', help='default: that of SRC')
    group.add_argument(
        '--dilation',
        type=int,
        metavar='D',
        help='default: that of SRC if the kernel size stays, else 2 below 23 and 3 from there',
    )
    group.add_argument(
        '--calibrate', metavar='DIR', help='refine the result by least squares on images in DIR'
    )
    group.add_argument(
        '--images',
        metavar='DIR',
        action='append',
        default=[],
        help='measure the result on images in DIR; may be repeated (default: the images of '
        '--calibrate, or else noise)',
    )
    group.add_argument(
        '--max-images', type=int, default=64, metavar='N', help='images to use (default 64)'
    )
    group.add_argument(
        '--image-size', type=int, default=224, metavar='S', help='side of them (default 224)'
    )
    group.add_argument('--seed', type=int, default=0, help='seed of the noise (default 0)')


def wants_warm_start(args: argparse.Namespace) -> bool:
    """Whether another attention is asked for."""
    return any(value is not None for value in (args.attention, args.kernel_size, args.dilation))


def main() -> None:
    """Convert the file, or say in one line why not."""
    args = parse_args()
    from mmlska.conversion.checkpoint_files import convert_checkpoint
    from mmlska.conversion.report import WarmStartOptions, warm_start

    change = None
    if wants_warm_start(args):
        given = {key: getattr(args, key) for key in WarmStartOptions._fields}
        change = partial(warm_start, options=WarmStartOptions(**given))
    try:
        print(convert_checkpoint(args.src, args.dst, args.to, args.force, change))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'to_mmlska: {error}')


if __name__ == '__main__':
    main()
