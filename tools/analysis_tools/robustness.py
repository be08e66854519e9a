#!/usr/bin/env python
"""Evaluate detectors, segmentors or classifiers under the corruptions of ImageNet-C.

The stock evaluation of each config runs once for each corruption and severity, with the corruption
applied in its pipeline. Prints what is left of the metric (mPC and rPC; mCE for classifiers), and
writes all figures as JSON and Markdown, curves over the severity, and a radar picture. Cells that
an earlier run has finished are not evaluated again. With --folders, classifiers are tested on
images in folders named by class instead, as of ImageNet-A, -R and -Sketch.
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
    add(
        '--corruptions',
        nargs='+',
        default=['benchmark'],
        metavar='NAME',
        help='benchmark (15, the default), all (19), noise, blur, weather, digital, extra, or '
        'names of corruptions',
    )
    add(
        '--severities',
        nargs='+',
        type=int,
        choices=range(1, 6),
        default=[1, 2, 3, 4, 5],
        help='severities (default: 1 2 3 4 5)',
    )
    add(
        '--images',
        type=int,
        metavar='N',
        help='evaluate on N images, evenly spread over the test set (default: all)',
    )
    add('--metric', nargs='+', help='keys of figures to compare (default: AP, mIoU or top-1)')
    add('--jobs', type=int, default=1, help='cells that are evaluated at a time (default: 1)')
    add('--seed', type=int, default=0, help='seed of the corruptions (default: 0)')
    add(
        '--folders',
        nargs='+',
        metavar='DIR',
        help='test classifiers on these folders, which hold a folder of images for each class',
    )
    add(
        '--class-names',
        metavar='DIR|FILE',
        help="with --folders: the training set's folder of classes, or a file with the names of "
        'the folders in the order of the outputs',
    )
    add(
        '--out-dir',
        default='outputs/robustness',
        help='where tables, pictures and finished cells go (default: outputs/robustness)',
    )
    add('--device', help='with --folders: where to run (default: a GPU where there is one)')
    add('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP)
    args = parser.parse_args()
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what argparse does not."""
    pair_models(parser, args)
    if args.jobs < 1:
        parser.error(f'--jobs takes a positive number, got {args.jobs}')
    if bool(args.folders) != bool(args.class_names):
        parser.error('--folders and --class-names belong together')


def evaluate_corrupted(args: argparse.Namespace) -> None:
    """Evaluate, print and draw."""
    from mmlska.analysis import corrupted_evaluation as evaluation
    from mmlska.analysis import robustness
    from mmlska.analysis.complexity import format_table
    from mmlska.datasets.corruptions import choose_corruptions

    out_dir = Path(args.out_dir)
    subjects = [
        evaluation.Subject(name, *pair) for name, pair in zip(args.names, args.models, strict=True)
    ]
    task = evaluation.task_of_subjects(subjects)
    settings = evaluation.Settings(args.images, args.seed, args.cfg_options or {})
    compared = evaluation.measure_robustness(
        subjects,
        choose_corruptions(args.corruptions),
        args.severities,
        out_dir,
        settings,
        args.jobs,
        args.metric,
    )
    text, records = [], {}
    for key, found in compared.items():
        as_errors = task == evaluation.CLASSIFICATION
        summary = robustness.summary_rows(found, as_errors)
        print(f'\n{key}, percent{", as errors" if as_errors else ""}\n')
        print(format_table(summary))
        text += [f'## {key}\n', format_table(summary, markdown=True), '']
        for one in found:
            text += [format_table(robustness.cell_rows(one, as_errors), markdown=True), '']
        records[key] = [robustness.record(one, as_errors) for one in found]
        name = key.replace('/', '_')
        robustness.draw_curves(out_dir / f'curves_{name}.png', found, f'{key} (%)')
        if len(found[0].cells) > 2:
            robustness.draw_radar(out_dir / f'radar_{name}.png', found, f'{key} (%)')
    facts = dict(settings=vars(settings), severities=args.severities, models=args.models)
    (out_dir / 'robustness.json').write_text(
        json.dumps(dict(facts, figures=records), indent=1), encoding='utf-8'
    )
    (out_dir / 'robustness.md').write_text('\n'.join(text), encoding='utf-8')
    print(f'\n{out_dir}: robustness.md, robustness.json and pictures')


def evaluate_folders(args: argparse.Namespace) -> None:
    """Test classifiers on folders and print their accuracy."""
    from mmlska.analysis import classification
    from mmlska.analysis.complexity import format_table

    names = classification.read_class_names(args.class_names)
    rows, records = [['model', *(Path(folder).name for folder in args.folders)]], {}
    for name, (config, checkpoint) in zip(args.names, args.models, strict=True):
        classify = classification.load_classifier(config, checkpoint, args.device, args.cfg_options)
        found = [classification.folder_accuracy(classify, path, names) for path in args.folders]
        rows.append([name, *(f'{one.accuracy:.1f} ({one.images} images)' for one in found)])
        records[name] = {folder: vars(one) for folder, one in zip(args.folders, found, strict=True)}
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / 'folders.json').write_text(json.dumps(records, indent=1) + '\n', encoding='utf-8')
    print(f'\ntop-1 accuracy, percent\n\n{format_table(rows)}\n\n{out_dir / "folders.json"}')


def main() -> None:
    """Evaluate under corruptions, or on folders."""
    args = parse_args()
    with report_errors():
        try:
            (evaluate_folders if args.folders else evaluate_corrupted)(args)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        except KeyboardInterrupt:
            raise SystemExit('\ninterrupted; finished cells are kept') from None


if __name__ == '__main__':
    main()
