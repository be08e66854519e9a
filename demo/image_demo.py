#!/usr/bin/env python
"""Find things in images and videos by a trained detector or segmentor, and draw or write them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmlska.cli import OPTIONS_HELP, OptionsAction, report_errors

if TYPE_CHECKING:
    from mmlska.engine.prediction_files import PredictionFiles

KINDS = ('picture', 'coco', 'yolo', 'labels')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage='%(prog)s INPUT [INPUT ...] CONFIG CHECKPOINT [options]'
    )
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help="images, videos, folders of them, or globs such as 'photos/**/*.jpg'",
    )
    parser.add_argument('config', help='path of a config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='checkpoint file of that model')
    parser.add_argument('--out-file', help='where the picture or video goes, for a single input')
    parser.add_argument(
        '--out-dir',
        help='folder for all that is written; pictures are named like the images (default: '
        'outputs, unless --show)',
    )
    parser.add_argument(
        '--save',
        nargs='+',
        choices=KINDS,
        default=['picture'],
        help='what is written: picture, the drawn images and videos (the default); of a detector '
        "coco, all detections in COCO's format (coco.json), and yolo, a text file for each image; "
        'of a segmentor labels, a label map (PNG) for each image',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a detection that is drawn or written (default: 0.3)',
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


def plan_outputs(args: argparse.Namespace) -> dict[Path, Path | None]:
    """Every image and video that is meant, and where what is drawn of it goes.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If what is written of one would overwrite that of another, or has a suffix of no
            format.
    """
    from mmlska.engine.media_files import (
        check_distinct,
        is_video,
        is_writable,
        list_images,
        output_paths,
    )

    files = list_images(args.inputs, videos=True)
    if args.save != ['picture']:
        check_distinct(file.stem for file in files)
    if args.out_file:
        if len(files) > 1:
            raise ValueError(f'--out-file is for a single input, got {len(files)}; use --out-dir')
        if not is_writable(args.out_file, is_video(files[0])):
            kind = 'video, such as .mp4' if is_video(files[0]) else 'picture, such as .png'
            raise ValueError(f'--out-file {args.out_file}: no suffix of a {kind}')
        return {files[0]: Path(args.out_file)}
    if 'picture' not in args.save or (args.show and not args.out_dir):
        return dict.fromkeys(files)
    return dict(zip(files, output_paths(files, folder_of(args)), strict=True))


def folder_of(args: argparse.Namespace) -> str:
    """The folder for all that is written."""
    return args.out_dir or 'outputs'


def main() -> None:
    """Predict, image by image; one that fails does not stop the others."""
    args = parse_args()
    from mmlska.engine.folders import make_folder
    from mmlska.engine.inference import Predictor
    from mmlska.engine.prediction_files import PredictionFiles

    with report_errors():
        outputs = plan_outputs(args)
        kinds = set(args.save) - {'picture'}
        option = '--out-file' if args.out_file else '--out-dir'
        for folder in {path.parent for path in outputs.values() if path}:
            make_folder(folder, option)
        if kinds:
            make_folder(folder_of(args), '--out-dir')
        predictor = Predictor(
            args.config, args.checkpoint, args.device, args.cfg_options, args.fuse
        )
        files = PredictionFiles(predictor, folder_of(args), kinds, args.score_thr, args.show)
        try:
            failed = predict(files, outputs)
        except KeyboardInterrupt:
            raise SystemExit('\ninterrupted') from None
        finally:
            files.close()
    if failed:
        lines = '\n  '.join(failed)
        raise SystemExit(
            f'image_demo.py: error: {len(failed)} of {len(outputs)} inputs failed:\n  {lines}'
        )


def predict(files: 'PredictionFiles', outputs: dict[Path, Path | None]) -> list[str]:
    """Predict on every image and video; returns what failed, and why."""
    from mmlska.engine.inference import describe_error
    from mmlska.engine.media_files import is_video

    failed = []
    for number, (path, output) in enumerate(outputs.items(), 1):
        add = files.add_video if is_video(path) else files.add_image
        try:
            found = add(path, output)
        # Pipelines and models refuse odd images with exceptions of any kind.
        except Exception as error:
            failed.append(f'{path}: {describe_error(error)}')
            print(f'[{number}/{len(outputs)}] error: {failed[-1]}', file=sys.stderr)
            continue
        arrow = f' -> {output}' if output else ''
        print(f'[{number}/{len(outputs)}] {path}: {found}{arrow}', flush=True)
    return failed


if __name__ == '__main__':
    main()
