"""Make the digit scenes, the data set of the demo. Nothing is downloaded."""

import argparse

from mmlska.datasets import make_digit_scenes


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('root', nargs='?', default='data/digit_scenes', help='folder to make')
    parser.add_argument('--num-train', type=int, default=1200, help='number of training scenes')
    parser.add_argument('--num-val', type=int, default=100, help='number of validation scenes')
    parser.add_argument('--image-size', type=int, default=128, help='side of a scene in pixels')
    parser.add_argument('--seed', type=int, default=0, help='seed of all choices')
    return parser.parse_args()


def main() -> None:
    """Make the scenes and say where they are."""
    args = parse_args()
    try:
        root = make_digit_scenes(**vars(args))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{root}: {args.num_train} training and {args.num_val} validation scenes')


if __name__ == '__main__':
    main()
