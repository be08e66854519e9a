#!/usr/bin/env python
"""What the middle of a feature map sees of the image: effective and theoretical receptive fields.

Measures the gradient of the middle position of a map with respect to the image, for the backbones
of any configs of mmdet, mmseg or mmpretrain. Prints the smallest centred squares that hold 20, 30,
50 and 99 % of it, and writes this table as JSON beside a picture of all fields on one scale. Fields
that an earlier run has finished are not computed again.
"""

import argparse
import json
from pathlib import Path

from mmlska.cli import OPTIONS_HELP, OptionsAction, report_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('configs', nargs='+', metavar='CONFIG', help='config files, or names of shipped configs')
    add(
        '--checkpoint',
        nargs='+',
        metavar='FILE',
        help='weights, one file for each config: of the whole model or of the backbone alone '
        '(default: random weights)',
    )
    add(
        '--vary',
        nargs=1,
        action=OptionsAction,
        metavar='KEY=A,B,...',
        help='measure each config with each of these values of one setting, for example '
        'model.backbone.attention.kernel_size=7,11,23,35,53,65',
    )
    add('--images', metavar='DIR', help='folder of images (default: random noise)')
    add('--num-images', type=int, help='most images (default: 50 of --images, 8 of noise)')
    add('--size', type=int, default=1024, help='side of the square images (default: 1024)')
    add(
        '--stage',
        type=int,
        default=-1,
        help='which of the maps that the backbone returns, from 0 on (default: -1, the last)',
    )
    add(
        '--direction',
        default='signs',
        help='how channels are added: signs (random signs, the default) or sum (as RepLKNet does; '
        'for trained weights)',
    )
    add(
        '--out-dir',
        default='outputs/receptive_field',
        help='where picture, JSON and finished fields go (default: outputs/receptive_field)',
    )
    add('--device', help='where to run: cpu, cuda, cuda:1 ... (default: a GPU where there is one)')
    add('--markdown', action='store_true', help='print a Markdown table')
    add('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP)
    args = parser.parse_args()
    if args.checkpoint and len(args.checkpoint) != len(args.configs):
        parser.error(
            f'--checkpoint takes one file for each config: {len(args.configs)}, '
            f'got {len(args.checkpoint)}'
        )
    if args.num_images is None:
        args.num_images = 50 if args.images else 8
    return args


def list_subjects(args: argparse.Namespace) -> list:
    """A backbone for each config, and for each value that is varied."""
    from mmlska.analysis.receptive_field import Subject
    from mmlska.engine.config import load_config
    from mmlska.engine.launch import check_checkpoint

    ((key, values),) = (args.vary or {'': ['']}).items()
    values = values if isinstance(values, list) else [values]
    subjects = []
    for config, checkpoint in zip(
        args.configs, args.checkpoint or [None] * len(args.configs), strict=True
    ):
        if checkpoint:
            check_checkpoint(checkpoint, '--checkpoint')
        for value in values:
            varied = {key: value} if key else {}
            cfg = load_config(config, {**(args.cfg_options or {}), **varied})
            words = [Path(config).stem, *(f'{k.rpartition(".")[2]}={v}' for k, v in varied.items())]
            subjects.append(Subject(', '.join(words), cfg, checkpoint))
    return subjects


def main() -> None:
    """Measure, print and draw."""
    args = parse_args()
    from mmlska.analysis import receptive_field as fields
    from mmlska.analysis.complexity import format_table
    from mmlska.engine.inference import find_device

    settings = fields.Settings(args.images, args.num_images, args.size, args.stage, args.direction)
    out_dir = Path(args.out_dir)
    with report_errors():
        subjects = list_subjects(args)
        device = find_device(args.device)
        found = fields.measure_fields(subjects, settings, out_dir / 'fields', device)
        fields.draw_fields(out_dir / 'receptive_field.png', found)
        records = fields.field_records(found, settings)
        (out_dir / 'receptive_field.json').write_text(
            json.dumps(records, indent=1) + '\n', encoding='utf-8'
        )
    print(f'\nmeasured on {settings.describe_images()}')
    print('smallest centred square that holds a share of the contribution: side (area)\n')
    print(format_table(fields.field_rows(found), args.markdown))
    print(f'\n{out_dir / "receptive_field.png"}, {out_dir / "receptive_field.json"}')


if __name__ == '__main__':
    main()
