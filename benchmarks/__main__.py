"""Command line of the benchmarks: ``python -m benchmarks SUBJECT``, from the top of a checkout."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from mmlska.cli import report_errors

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
CASE_HELP = (
    'op (depth-wise cascade), layer, block (of VAN), backbone (VAN), detector (training step or '
    'inference of a detector or segmentor on random images), or evaluation (of a detector on the '
    'images of --data)'
)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description='Measure time and memory; each subject tells its options by --help.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subjects = parser.add_subparsers(dest='subject', required=True, metavar='SUBJECT')
    for run in (
        run_case,
        run_sweep,
        run_suite,
        run_layers,
        run_backbones,
        run_training,
        run_evaluation,
        run_depthwise,
    ):
        about = ' '.join(run.__doc__.split())
        name = run.__name__.removeprefix('run_')
        subject = subjects.add_parser(name, help=about, description=about)
        subject.set_defaults(run=run)
        OPTIONS[name](subject)
    return parser.parse_args(arguments)


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a case, and how it is measured."""
    parser.add_argument('case', help=CASE_HELP)
    add = parser.add_argument_group('the case').add_argument
    add('--mode', help='forward (default), or train: forward and backward')
    add('--device', help='cpu (default), cuda, cuda:1 ...')
    add(
        '--dtype',
        help='float32 (default), bfloat16, float16 or float64; a backbone and a detector compute '
        'under autocast',
    )
    add('--layout', help='of the map: contiguous (default) or channels_last')
    add(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='N C H W of the map or the images; for a backbone, a detector and an evaluation also '
        'N SIZE or N H W (default: 1 64 128 128; backbone 2 3 512 512; detector 2 3 800 1280)',
    )
    add('--attention', help='type of the attention layer (default: LSKA)')
    add('--kernel-size', type=int, metavar='K', help="(default: the layer's own)")
    add('--arch', help='of the VAN (default: tiny)')
    add('--ffn-ratio', type=float, help='of the VAN block (default: 8)')
    add('--config', help="path or name of a config (default: the paper's Mask R-CNN tiny)")
    add('--data', metavar='FOLDER', help='images of an evaluation, in the layout of COCO')
    add('--backend', help='what ours is to take: auto (default), or a form by name')
    add('--fuse', action='store_true', help='fold ours for inference')
    add = parser.add_argument_group('the measurement').add_argument
    add('--compile', action='store_true', help='measure both by torch.compile as well')
    add(
        '--allocator',
        help='what becomes of freed memory on the CPU: keep (default for op and layer), return, or '
        'default, as the C library decides (default for the others)',
    )
    add('--threads', type=int, help='of PyTorch on the CPU (default: 1)')
    add('--rounds', type=int, help='how often each variant is timed (default: 9)')
    add(
        '--max-seconds',
        type=float,
        metavar='S',
        help='begin no further round after so many, once three are done (default: 60)',
    )
    add_json_option(parser)


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add those of a case, what is swept, and where the picture goes."""
    add_case_options(parser)
    add = parser.add_argument
    add(
        '--against',
        choices=['kernel-size', 'input-size'],
        required=True,
        help='what changes; kernel-size is that of four kinds of attention',
    )
    add('--plot', metavar='FILE', required=True, help='PNG to draw the times into')


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Add which suite is measured, and where its tables go."""
    add = parser.add_argument
    add('suite', help='cpu, gpu or maps')
    add('--data', metavar='FOLDER', help='images of an evaluation, in the layout of COCO')
    add('--only', metavar='WORDS', help='only the tables with these words in the title')
    add('--list', action='store_true', help='list the cases, measure nothing')
    add(
        '--from',
        dest='earlier',
        nargs='+',
        metavar='FILE',
        help='fill the tables with the results of these JSON files, measure nothing',
    )
    add('--docs', metavar='FILE', help='rewrite the tables of the suite in this document')
    add_json_option(parser)


def add_layers_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the map, and where pictures go."""
    add = parser.add_argument
    add('--in-channels', type=positive, default=256, metavar='C', help='(default: 256)')
    # A photograph of 800 x 1333 at stride 16.
    add_size(parser, '--shape', (50, 84), 'of the map')
    add_size(parser, '--memory-shape', (50, 84), 'of the map whose memory is counted')
    add_rounds(parser, 7)
    add('--figures', metavar='FOLDER', help='draw data flow and receptive fields into this folder')


def add_backbones_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the image."""
    add_size(parser, '--shape', (512, 512), 'of the image')
    add_size(parser, '--memory-shape', (800, 1333), 'of the image whose memory is counted')
    add_rounds(parser, 7)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the batch."""
    add_size(parser, '--shape', (512, 512), 'of the images')
    parser.add_argument('--batch-size', type=positive, default=2, metavar='N', help='(default: 2)')
    add_rounds(parser, 7)


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add the number of images."""
    parser.add_argument(
        '--images', type=positive, default=5000, help='images to make up (default: 5000)'
    )


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
    add_json_option(parser)


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
        help=f'how often each is timed (default: {default})',
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the file of the results."""
    parser.add_argument(
        '--json', metavar='FILE', help='write all results to this file, with machine and command'
    )


OPTIONS = {
    'case': add_case_options,
    'sweep': add_sweep_options,
    'suite': add_suite_options,
    'layers': add_layers_options,
    'backbones': add_backbones_options,
    'training': add_training_options,
    'evaluation': add_evaluation_options,
    'depthwise': add_depthwise_options,
}


def positive(text: str) -> int:
    """A number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def command() -> str:
    """How this was called."""
    return shlex.join(['python', '-m', 'benchmarks', *sys.argv[1:]])


def case_fields(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the fields of a case."""
    own = ('subject', 'run', 'json', 'plot', 'against')
    fields = {
        name: value
        for name, value in vars(args).items()
        if name not in own and value not in (None, False)
    }
    if args.shape:
        fields['shape'] = full_shape(args.shape)
    return fields


def full_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Number, channels, height and width, where channels and width may be left out.

    >>> full_shape([2, 512]), full_shape([2, 64, 32, 16])
    ((2, 3, 512, 512), (2, 64, 32, 16))
    """
    return (shape[0], 3, shape[1], shape[-1]) if len(shape) in (2, 3) else tuple(shape)


def run_case(args: argparse.Namespace) -> None:
    """Ours against the plain official order, in one process and in turns."""
    from . import run

    run.run_case(case_fields(args), args.json, command())


def run_sweep(args: argparse.Namespace) -> None:
    """The same over kernel sizes or input sizes, as a picture."""
    from . import run

    run.run_sweep(case_fields(args), args.against, args.plot, args.json, command())


def run_suite(args: argparse.Namespace) -> None:
    """The cases of docs/benchmarks.md, each in a new process."""
    from . import run

    if args.docs and args.only:
        raise ValueError('--docs takes all tables of a suite: leave --only out')
    options = {} if args.data is None else dict(data=args.data)
    earlier = [] if args.list else args.earlier
    run.run_suite(args.suite, options, args.only, earlier, args.docs, args.json, command())


def run_layers(args: argparse.Namespace) -> None:
    """All attention layers at equal input: size, work, memory and time."""
    from . import comparison

    print(
        comparison.layer_table(
            args.in_channels, tuple(args.shape), tuple(args.memory_shape), args.rounds
        )
    )
    if args.figures:
        comparison.draw_figures(args.figures)


def run_backbones(args: argparse.Namespace) -> None:
    """All backbones at equal input: size, work, memory and time."""
    from . import comparison

    print(comparison.backbone_table(tuple(args.shape), tuple(args.memory_shape), args.rounds))


def run_training(args: argparse.Namespace) -> None:
    """What the training options cost and save: a training step of each backbone, on the CPU."""
    from . import option_costs

    print(option_costs.training_table((args.batch_size, 3, *args.shape), args.rounds))


def run_evaluation(args: argparse.Namespace) -> None:
    """Made-up results of a detector, evaluated with pycocotools and with faster-coco-eval."""
    from . import option_costs

    print(option_costs.evaluation_table(args.images))


def run_depthwise(args: argparse.Namespace) -> None:
    """PyTorch's own depth-wise convolutions on the maps of VAN-LSKA, one by one."""
    from mmengine.utils import track_iter_progress

    from . import depthwise_baseline as baseline
    from . import report

    cases = baseline.list_cases(
        args.arch, args.stage, args.batch_size, args.dtype, tuple(args.shape), args.kernel_size
    )
    baseline.find_device(args.device)
    rows = []
    for case in track_iter_progress(cases):
        rows += baseline.measure(
            [case], args.device, args.rounds, not args.no_compile, args.max_seconds
        )
        if args.json:
            baseline.write_json(args.json, rows, command(), args.device)
    print(f'\n{report.describe_machine(report.machine(args.device))}, {report.today()}\n')
    print(baseline.table(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse_args(arguments)
    with report_errors():
        args.run(args)


if __name__ == '__main__':
    main()
