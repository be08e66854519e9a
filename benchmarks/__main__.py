"""Command line of the benchmarks: ``python -m benchmarks SUBJECT``, from the top of a checkout."""

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence

from mmlska.cli import report_errors

from .settings import CASES, Settings

# The profiler, which counts memory, tells of each start, and of memory that it did not see given.
os.environ.setdefault('KINETO_LOG_LEVEL', '6')
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')

EXAMPLES = """examples:
  python -m benchmarks case layer --attention LKA --kernel-size 23 --mode train
  python -m benchmarks case detector --shape 1 400 640 --fuse
  python -m benchmarks sweep layer --against input-size --plot times.png
  python -m benchmarks suite cpu --only 'Small maps'
  python -m benchmarks layers --rounds 15
"""
JSON_HELP = 'write all results to this file, with machine, date and command'


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a case, and how it is measured: the fields of its settings."""
    cases = '; '.join(f'{name}: {what}' for name, what in CASES.items())
    parser.add_argument('case', help=f'what is measured: {cases}')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='N C H W of the map or the images; for a backbone, a detector and an evaluation also '
        'N SIZE or N H W (default: 1 64 128 128; backbone 2 3 512 512; detector 2 3 800 1280)',
    )
    for field in dataclasses.fields(Settings):
        if field.metadata:
            kind = field.metadata['kind']
            how = dict(action='store_true') if kind is bool else dict(type=kind, metavar='X')
            name = f'--{field.name.replace("_", "-")}'
            parser.add_argument(name, default=field.default, help=field.metadata['help'], **how)
    parser.add_argument('--json', metavar='FILE', help=JSON_HELP)


def run_case(args: argparse.Namespace) -> None:
    """Ours against the plain official order, in one process and in turns."""
    from . import run

    run.run_case(settings_of(args), args.json, command())


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add those of a case, what is swept, and where the picture goes."""
    add_case_options(parser)
    parser.add_argument(
        '--against',
        choices=['kernel-size', 'input-size'],
        required=True,
        help='what changes; kernel-size is that of four kinds of attention',
    )
    parser.add_argument('--plot', metavar='FILE', required=True, help='PNG to draw the times into')


def run_sweep(args: argparse.Namespace) -> None:
    """The same over kernel sizes or input sizes, as a picture."""
    from . import run

    run.run_sweep(settings_of(args), args.against, args.plot, args.json, command())


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Add which suite is measured, and where its tables go."""
    add = parser.add_argument
    add('suite', help='cpu, gpu, attention or maps')
    add('--data', metavar='FOLDER', help='images of an evaluation, in the layout of COCO')
    add('--only', metavar='WORDS', help='only the tables with these words in the title')
    add('--no-compile', action='store_true', help='leave torch.compile out')
    add('--max-minutes', type=float, default=float('inf'), metavar='M', help='begin no case later')
    add('--list', action='store_true', help='list the cases, measure nothing')
    add(
        '--from',
        dest='earlier',
        nargs='+',
        metavar='FILE',
        help='fill the tables with the results of these JSON files, measure nothing',
    )
    add('--docs', metavar='FILE', help='rewrite the tables of the suite in this document')
    add('--json', metavar='FILE', help=f'{JSON_HELP}, after each case anew')


def run_suite(args: argparse.Namespace) -> None:
    """The cases of docs/benchmarks.md, each in a new process."""
    from . import run

    if args.docs and args.only:
        raise ValueError('--docs takes all tables of a suite: leave --only out')
    suite = run.choose_suite(args.suite, args.data, args.only, not args.no_compile)
    if args.list or args.earlier:
        run.look_suite_up(args.suite, suite, args.earlier or [], args.docs)
    else:
        run.run_suite(args.suite, suite, args.docs, args.json, command(), args.max_minutes)


def add_layers_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the map."""
    add = parser.add_argument
    add('--in-channels', type=positive, default=256, metavar='C', help='(default: 256)')
    # A photograph of 800 x 1333 at stride 16.
    add_size(parser, '--shape', (50, 84), 'of the map')
    add_size(parser, '--memory-shape', (50, 84), 'of the map whose memory is counted')
    add_rounds(parser, 7)


def run_layers(args: argparse.Namespace) -> None:
    """All attention layers at equal input: size, work, memory and time."""
    from . import layers

    print(layers.layer_table(args.in_channels, args.shape, args.memory_shape, args.rounds))


def add_pictures_options(parser: argparse.ArgumentParser) -> None:
    """Add where pictures go."""
    parser.add_argument('folder', metavar='FOLDER', help='docs/images holds those of the pages')


def run_pictures(args: argparse.Namespace) -> None:
    """Draw what the attention layers do, and what they see; measures nothing."""
    from . import layers

    layers.draw_figures(args.folder)


def add_backbones_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the image."""
    add_size(parser, '--shape', (512, 512), 'of the image')
    add_size(parser, '--memory-shape', (800, 1333), 'of the image whose memory is counted')
    add_rounds(parser, 7)


def run_backbones(args: argparse.Namespace) -> None:
    """All backbones at equal input: size, work, memory and time."""
    from . import layers

    print(layers.backbone_table(args.shape, args.memory_shape, args.rounds))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the batch."""
    parser.add_argument('--batch-size', type=positive, default=2, metavar='N', help='(default: 2)')
    add_size(parser, '--shape', (512, 512), 'of the images')
    add_rounds(parser, 7)


def run_training(args: argparse.Namespace) -> None:
    """What the training options cost and save: a training step of each backbone, on the CPU."""
    from . import options

    print(options.training_table((args.batch_size, 3, *args.shape), args.rounds))


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add the number of images."""
    parser.add_argument(
        '--images', type=positive, default=5000, metavar='N', help='to make up (default: 5000)'
    )


def run_evaluation(args: argparse.Namespace) -> None:
    """Made-up results of a detector, evaluated with pycocotools and with faster-coco-eval."""
    from . import options

    print(options.evaluation_table(args.images))


def add_depthwise_options(parser: argparse.ArgumentParser) -> None:
    """Add the lists of which all combinations are measured."""
    add = parser.add_argument
    dtypes = ['float32', 'bfloat16', 'float16']
    add('--device', default='cuda', help='cuda (default), cuda:1 ... or cpu')
    add('--arch', nargs='+', default=['tiny', 'base'], help='of VAN (default: tiny base)')
    add('--stage', nargs='+', type=int, default=[1, 2, 3, 4], help='(default: 1 2 3 4)')
    add('--batch-size', nargs='+', type=int, default=[2, 16], metavar='N', help='(default: 2 16)')
    add('--dtype', nargs='+', default=dtypes, help=f'(default: {" ".join(dtypes)})')
    add_size(parser, '--shape', (800, 1280), 'of the image')
    add('--kernel-size', type=int, default=23, metavar='K', help='of LSKA (default: 23)')
    add_rounds(parser, 9)
    add(
        '--max-seconds',
        type=float,
        default=1.0,
        metavar='S',
        help='begin no further round of a row after so many, once three are done (default: 1)',
    )
    add('--no-compile', action='store_true', help='leave torch.compile out: seconds for each row')
    add('--max-minutes', type=float, default=float('inf'), metavar='M', help='begin no case later')
    add('--json', metavar='FILE', help=f'{JSON_HELP}, after each row anew')


def run_depthwise(args: argparse.Namespace) -> None:
    """PyTorch's own depth-wise convolutions on the maps of VAN-LSKA, one by one."""
    from mmlska.analysis import timing

    from . import depthwise, report

    cases = depthwise.list_cases(
        args.arch, args.stage, args.batch_size, args.dtype, args.shape, args.kernel_size
    )
    device, rows, failures = timing.find_device(args.device), [], []
    end = time.monotonic() + 60 * args.max_minutes
    for done, case in enumerate(cases, 1):
        if time.monotonic() > end:
            failures.append(
                f'{len(cases) - done + 1} cases: {args.max_minutes:g} minutes were over'
            )
            break
        try:
            rows += depthwise.measure(
                [case], device, args.rounds, not args.no_compile, args.max_seconds
            )
        except Exception as error:
            # Whatever it is, the other cases wait behind this one.
            failures.append(f'{case}: {report.failure(error)}')
        report.tell(f'[{done}/{len(cases)}] {case}')
        if args.json:
            records = [dataclasses.asdict(row) for row in rows]
            report.write_json(args.json, command(), args.device, records)
    print(f'\n{report.here_and_today(args.device)}\n\n{depthwise.table(rows)}')
    if failures:
        raise SystemExit('\n'.join(failures))


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Add the number of rounds."""
    add_rounds(parser, 51)


def run_host(args: argparse.Namespace) -> None:
    """What Python takes for a call of the kernels, without launching them; no GPU is needed."""
    from . import host, report

    print(f'{host.table(host.measure(args.rounds))}\n\n{report.here_and_today("cpu")}')


SUBJECTS = {
    'case': (add_case_options, run_case),
    'sweep': (add_sweep_options, run_sweep),
    'suite': (add_suite_options, run_suite),
    'layers': (add_layers_options, run_layers),
    'pictures': (add_pictures_options, run_pictures),
    'backbones': (add_backbones_options, run_backbones),
    'training': (add_training_options, run_training),
    'evaluation': (add_evaluation_options, run_evaluation),
    'depthwise': (add_depthwise_options, run_depthwise),
    'host': (add_host_options, run_host),
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description='Measure time and memory; each subject tells its options by --help.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subjects = parser.add_subparsers(dest='subject', required=True, metavar='SUBJECT')
    for name, (add_options, run) in SUBJECTS.items():
        subject = subjects.add_parser(name, help=run.__doc__, description=run.__doc__)
        add_options(subject)
        subject.set_defaults(run=run)
    return parser.parse_args(arguments)


def add_size(
    parser: argparse.ArgumentParser, name: str, default: tuple[int, int], of_what: str
) -> None:
    """Add an option that takes a height and a width."""
    parser.add_argument(
        name,
        type=positive,
        nargs=2,
        default=default,
        metavar=('H', 'W'),
        help=f'size {of_what} (default: {default[0]} {default[1]})',
    )


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the number of rounds."""
    parser.add_argument(
        '--rounds',
        type=positive,
        default=default,
        metavar='N',
        help=f'how often each is timed (default: {default})',
    )


def positive(text: str) -> int:
    """A number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def command() -> str:
    """How this was called."""
    return shlex.join(['python', '-m', 'benchmarks', *sys.argv[1:]])


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of a case."""
    names = {field.name for field in dataclasses.fields(Settings)}
    values = {name: value for name, value in vars(args).items() if name in names}
    return Settings(**values | dict(shape=full_shape(args.shape)))


def full_shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Number, channels, height and width, where channels and width may be left out.

    >>> full_shape([2, 512]), full_shape([2, 64, 32, 16])
    ((2, 3, 512, 512), (2, 64, 32, 16))
    """
    if shape is None or len(shape) not in (2, 3):
        return shape and tuple(shape)
    return shape[0], 3, shape[1], shape[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse_args(arguments)
    with report_errors():
        args.run(args)


if __name__ == '__main__':
    main()
