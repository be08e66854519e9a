#!/usr/bin/env python
"""Shape or texture: what the stages of trained backbones hold, and what classifiers decide by.

Estimates from pairs of pictures that share shape or texture how many neurons of each stage hold
either. The pictures are named as those of Geirhos (cat3-bicycle2.png: shape, texture), or made
without a download. With --categories, decisions of classifiers on pictures whose cues disagree are
counted; with --dtd, textures are told apart by the nearest neighbour. Features that an earlier run
has computed are read again.
"""

import argparse
import json
from pathlib import Path

from mmlska.cli import OPTIONS_HELP, OptionsAction, add_models, pair_models, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_models(parser)
    add = parser.add_argument
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument('--pairs', metavar='DIR', help='folder of cue-conflict pictures')
    pictures.add_argument(
        '--generate',
        choices=['silhouettes', 'scenes'],
        help='make the pictures: one large digit of a texture on grey, or the digit scenes with '
        'exchanged textures, for models trained on them',
    )
    add('--max-pairs', type=int, default=2000, help='most pairs of each kind (default: 2000)')
    add(
        '--categories',
        metavar='FILE',
        help='JSON of the outputs that belong to each category, {"cat": [281, 282], ...}; counts '
        'the decisions of classifiers',
    )
    add('--dtd', metavar='DIR', help='folder in the layout of DTD: probe for textures')
    add('--split', type=int, default=1, help='with --dtd: split, 1 to 10 (default: 1)')
    add('--size', type=int, default=224, help='side of the square images (default: 224)')
    add('--seed', type=int, default=0, help='seed of pairs and made pictures (default: 0)')
    add(
        '--out-dir',
        default='outputs/shape_texture',
        help='where table, picture and features go (default: outputs/shape_texture)',
    )
    add('--device', help='where to run: cpu, cuda, cuda:1 ... (default: a GPU where there is one)')
    add('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP)
    args = parser.parse_args()
    pair_models(parser, args)
    if not (args.pairs or args.generate or args.dtd):
        parser.error('name pictures by --pairs, --generate or --dtd')
    if args.categories and not args.pairs:
        parser.error('--categories belongs to --pairs')
    if args.size < 1 or args.max_pairs < 2:
        parser.error('--size takes a positive number, --max-pairs 2 or more')
    return args


class Models:
    """The models of the command line, by name."""

    def __init__(self, args: argparse.Namespace) -> None:
        from mmlska.engine.config import load_config
        from mmlska.engine.inference import find_device
        from mmlska.engine.launch import check_checkpoint

        self.args, self.device = args, find_device(args.device)
        self.pairs = dict(zip(args.names, args.models, strict=True))
        self.configs = {}
        for name, (config, checkpoint) in self.pairs.items():
            check_checkpoint(checkpoint, 'checkpoint')
            self.configs[name] = load_config(config, args.cfg_options)

    def features(self, name: str, files: list[Path]) -> list:
        """Responses of each stage of one model to the files."""
        from mmlska.analysis.stage_features import kept_features

        folder = Path(self.args.out_dir) / 'features'
        checkpoint = self.pairs[name][1]
        size = self.args.size
        return kept_features(self.configs[name], checkpoint, files, folder, size, self.device)


def estimate_dimensions(models: Models, out_dir: Path, pictures: list) -> dict:
    """Print and draw the dimensions of all models; returns them for JSON."""
    from mmlska.analysis import shape_texture
    from mmlska.analysis.complexity import format_table
    from mmlska.datasets.cue_conflict import pair_pictures

    pairs = pair_pictures(pictures, models.args.max_pairs, models.args.seed)
    files = [picture.path for picture in pictures]
    found = {
        name: shape_texture.stage_dimensions(models.features(name, files), pairs)
        for name in models.pairs
    }
    counts = f'{len(pairs.shape)} pairs of one shape, {len(pairs.texture)} of one texture'
    print(f'\n{len(files)} pictures, {counts}\n')
    print(format_table(shape_texture.dimension_rows(found)))
    shape_texture.draw_dimensions(out_dir / 'shape_texture.png', found)
    return shape_texture.dimension_records(found)


def count_decisions(models: Models, pictures: list) -> dict:
    """Print the decisions of all classifiers; returns them for JSON."""
    from mmlska.analysis import classification
    from mmlska.analysis.complexity import format_table

    args = models.args
    categories = json.loads(Path(args.categories).read_text(encoding='utf-8'))
    shapes, textures = [p.shape for p in pictures], [p.texture for p in pictures]
    rows, records = [['model', 'shape', 'texture', 'images', 'share of shape']], {}
    for name, pair in models.pairs.items():
        classify = classification.load_classifier(*pair, args.device, args.cfg_options)
        scores = classification.classify_files(classify, [picture.path for picture in pictures])
        one = classification.cue_decisions(scores, shapes, textures, categories)
        share = f'{100 * one.share_of_shape:.1f} %'
        rows.append([name, str(one.shape), str(one.texture), str(one.images), share])
        records[name] = dict(vars(one), share_of_shape=one.share_of_shape)
    print(f'\ndecisions where the cues disagree\n\n{format_table(rows)}')
    return records


def probe_textures(models: Models) -> dict:
    """Print the accuracy of the nearest neighbour by stage; returns it for JSON."""
    from mmlska.analysis import texture_probe
    from mmlska.analysis.complexity import format_table

    split = texture_probe.read_dtd(models.args.dtd, models.args.split)
    found = {}
    for name in models.pairs:
        known, asked = (models.features(name, files) for files in (split.known, split.asked))
        found[name] = [
            texture_probe.nearest_neighbour_accuracy(a, split.known_names, b, split.asked_names)
            for a, b in zip(known, asked, strict=True)
        ]
    stages = max(map(len, found.values()))
    rows = [['model', *(f'stage {index}' for index in range(stages))]]
    for name, values in found.items():
        cells = [f'{value:.1f}' for value in values]
        rows.append([name, *cells, *[''] * (stages - len(cells))])
    print(f'\naccuracy of the nearest neighbour on textures, percent\n\n{format_table(rows)}')
    return found


def run(args: argparse.Namespace) -> None:
    """Measure what the command line asks for, and write JSON."""
    from mmlska.datasets.cue_conflict import find_pictures, make_cue_conflict

    models, out_dir, records = Models(args), Path(args.out_dir), {}
    folder = args.pairs
    if args.generate:
        folder = make_cue_conflict(out_dir / args.generate, args.generate, seed=args.seed)
    if folder:
        pictures = find_pictures(folder)
        records['dimensions'] = estimate_dimensions(models, out_dir, pictures)
        if args.categories:
            records['decisions'] = count_decisions(models, pictures)
    if args.dtd:
        records['texture_accuracy'] = probe_textures(models)
    out_dir.mkdir(parents=True, exist_ok=True)
    facts = dict(models=dict(models.pairs), pictures=str(folder), size=args.size, seed=args.seed)
    (out_dir / 'shape_texture.json').write_text(
        json.dumps(dict(facts, **records), indent=1) + '\n', encoding='utf-8'
    )
    print(f'\n{out_dir / "shape_texture.json"}')


def main() -> None:
    """Measure."""
    args = parse_args()
    with report_errors():
        run(args)


if __name__ == '__main__':
    main()
