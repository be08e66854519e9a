"""Rewrite the weights of a VAN in the names of mmlska, or back."""

import argparse
import sys


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
        choices=['mmlska', 'mmpretrain', 'official', 'official-detection'],
        help='names to write: mmlska (default), mmpretrain (with the prefix "backbone."), official '
        '(classification code of LSKA and VAN), official-detection (its detection and '
        'segmentation code)',
    )
    parser.add_argument('--force', action='store_true', help='write over an existing DST')
    return parser.parse_args()


def main() -> None:
    """Convert the file, or say in one line why not."""
    args = parse_args()
    from mmlska.checkpoint.converting import convert_checkpoint

    try:
        print(convert_checkpoint(args.src, args.dst, args.to, args.force))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f'to_mmlska: {error}')


if __name__ == '__main__':
    main()
