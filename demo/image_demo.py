#!/usr/bin/env python
"""Draw what a trained detector or segmentor finds in images: boxes, masks or segments."""

import argparse
import sys

from mmlska.cli import OPTIONS_HELP, OptionsAction, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage='%(prog)s IMAGE [IMAGE ...] CONFIG CHECKPOINT [options]'
    )
    parser.add_argument(
        'images', nargs='+', metavar='IMAGE', help='image files, or folders of them'
    )
    parser.add_argument('config', help='path of a config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='checkpoint file of that model')
    parser.add_argument('--out-file', help='where the picture goes, for a single image')
    parser.add_argument(
        '--out-dir',
        help='folder for the pictures, named like the images (default: outputs, unless --show)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a detection that is drawn (default: 0.3)',
    )
    parser.add_argument(
        '--device', help='where to run: cpu, cuda, cuda:1 ... (default: a GPU where there is one)'
    )
    parser.add_argument('--show', action='store_true', help='show each picture in a window')
    parser.add_argument(
        '--fuse',
        action='store_true',
        help='fuse norms into convolutions first: the same pictures in less time',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP
    )
    return parser.parse_args()


def main() -> None:
    """Predict and draw, image by image; one that fails does not stop the others."""
    args = parse_args()
    from mmlska.engine.inference import (
        Predictor,
        describe_error,
        is_writable,
        list_images,
        output_paths,
    )

    with report_errors():
        images = list_images(args.images)
        if args.out_file and len(images) > 1:
            raise ValueError(f'--out-file is for a single image, got {len(images)}; use --out-dir')
        if args.out_file and not is_writable(args.out_file):
            raise ValueError(f'--out-file {args.out_file}: no suffix of a picture, such as .png')
        folder = args.out_dir or ('outputs' if not args.show else None)
        outputs = [None] * len(images)
        if args.out_file or folder:
            outputs = [args.out_file] if args.out_file else output_paths(images, folder)
        predictor = Predictor(
            args.config, args.checkpoint, args.device, args.cfg_options, args.fuse
        )
    failed = []
    for number, (image, output) in enumerate(zip(images, outputs, strict=True), 1):
        try:
            prediction = predictor(image)
            predictor.draw(image, prediction, output, args.score_thr, args.show)
            found = predictor.describe(prediction, args.score_thr)
        # Pipelines and models refuse odd images with exceptions of any kind.
        except Exception as error:
            failed.append(f'{image}: {describe_error(error)}')
            print(f'[{number}/{len(images)}] error: {failed[-1]}', file=sys.stderr)
            continue
        print(f'[{number}/{len(images)}] {image}: {found}' + (f' -> {output}' if output else ''))
    if failed:
        lines = '\n  '.join(failed)
        raise SystemExit(
            f'image_demo.py: error: {len(failed)} of {len(images)} images failed:\n  {lines}'
        )


if __name__ == '__main__':
    main()
