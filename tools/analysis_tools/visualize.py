#!/usr/bin/env python
"""Draw what a trained detector or segmentor looks at, all images on one sheet.

cam: where the score of each detection, or of each class of a segmentor, comes from.
gate: what LSKA, LKA, their trivial forms, DFC, ECA and ContextAggregation multiply with.
features: the maps of each stage: their strength, principal components and most varying channels.
"""

import argparse
import sys

from mmlska.cli import OPTIONS_HELP, OptionsAction, report_errors

TILES = dict(cam=6, gate=18)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s IMAGE [IMAGE ...] CONFIG CHECKPOINT --what cam|gate|features [options]',
    )
    add = parser.add_argument
    add('images', nargs='+', metavar='IMAGE', help='image files, or folders of them')
    add('config', help='path of a config file, or the name of a shipped config')
    add('checkpoint', help='checkpoint file of that model')
    add('--what', choices=['cam', 'gate', 'features'], default='cam', help='default: cam')
    add('--out-file', help='where the sheet goes (default: outputs/visualize/WHAT.png)')
    add(
        '--max-tiles',
        type=int,
        help='most tiles of an image: the best detections, the largest classes, or gates spread '
        'over the depth (default: 6 for cam, 18 for gate)',
    )
    add(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a detection (default: 0.3)',
    )
    add(
        '--layer',
        default='backbone',
        help='module of backbone or neck whose maps --what features shows, for example neck or '
        'backbone.layer1 (default: backbone)',
    )
    add('--device', help='where to run: cpu, cuda, cuda:1 ... (default: a GPU where there is one)')
    add('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP)
    args = parser.parse_args()
    if args.max_tiles is not None and args.max_tiles < 1:
        parser.error(f'--max-tiles must be at least 1, got {args.max_tiles}')
    args.max_tiles = args.max_tiles or TILES.get(args.what)
    args.out_file = args.out_file or f'outputs/visualize/{args.what}.png'
    return args


def main() -> None:
    """Look at each image, and draw the sheet; an image that cannot be read does not stop it."""
    args = parse_args()
    from mmengine.utils import track_iter_progress

    from mmlska.analysis import attention_maps as maps
    from mmlska.engine.inference import Predictor, UnreadableImageError
    from mmlska.engine.media_files import is_writable, list_images

    def tiles_of(scene: maps.Scene) -> list:
        if args.what == 'cam':
            return maps.class_activations(predictor, scene, args.max_tiles, args.score_thr)
        if args.what == 'gate':
            return maps.gate_tiles(predictor, scene, args.max_tiles)
        return maps.feature_tiles(predictor, scene, args.layer)

    rows, failed = [], []
    with report_errors():
        if not is_writable(args.out_file):
            raise ValueError(f'--out-file {args.out_file}: no suffix of a picture, such as .png')
        images = list_images(args.images)
        predictor = Predictor(args.config, args.checkpoint, args.device, args.cfg_options)
        for path in track_iter_progress(images, file=sys.stderr):
            try:
                scene = maps.Scene(predictor, path)
            except UnreadableImageError as error:
                failed.append(str(error))
                continue
            rows.append(maps.Row(path.name, scene.image, tiles_of(scene)))
        if rows:
            maps.draw_sheet(args.out_file, rows)
    for row in rows:
        titles = ', '.join(tile.title for tile in row.tiles) if args.what == 'cam' else ''
        found = f'{sum(tile.values.size > 0 for tile in row.tiles)} tiles'
        print(f'{row.name}: {titles or found}')
    print(f'{args.out_file}' if rows else 'no image could be read')
    if failed:
        raise SystemExit('visualize.py: error: ' + '\n  '.join(failed))


if __name__ == '__main__':
    main()
