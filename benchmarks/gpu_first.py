"""What the first minutes on a GPU are for, in three calls, each a few minutes long.

``python -m benchmarks.gpu_first 1 --out FOLDER``, from the top of a checkout; nothing but PyTorch,
Triton and NumPy has to be installed. What needs more, the blocks and backbones, is skipped by name.

1. Do the kernels compute the right thing; how fast is a copy; the cascade and the convolution with
   GELU at the stages of VAN-base, PyTorch's in both layouts and ours; the table of which form is
   faster from which size on; PyTorch's own convolutions one by one.
2. Which launch constants are the best.
3. Blocks and backbones under autocast; the kernels under compute-sanitizer.

Each step has a share of the minutes of its call, writes its results after every case, and lists
what failed. ``python -m benchmarks.gpu_first report FILE ...`` makes tables of the files, for
docs/benchmarks.md, and rows for ``mmlska/ops/measured.py``.
"""

import argparse
import dataclasses
import functools
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mmlska.analysis import timing, tuning
from mmlska.cli import report_errors
from mmlska.ops import measured, tuned

from . import depthwise, gpu_report, report
from .suites import WIDE

Record = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parent.parent
DTYPES = ('bfloat16', 'float32')
BATCHES = (2, 16)
KERNEL_SIZE = 23
STRIDES = {channels: stride for stride, channels in WIDE.items()}
IMAGE = (800, 1280)
# Largest relative error of a result, by dtype: what its rounding explains.
TOLERANCES = {'float32': 1e-5, 'float16': 3e-3, 'bfloat16': 2e-2}
# What the sweep changes, one at a time; what is not among the constants of the kernels any more is
# skipped by name.
CONSTANTS = {
    'NUM_WARPS': (2, 8),
    'AHEAD': (4, 16),
    'AHEAD_BACK': (2, 8),
    'PROGRAMS': (2, 8),
    'PROGRAMS_BACK': (2, 4),
    'MOST_FOR_TWO': (0, 128),
}
OVER = 'the minutes were over'
SMALL_PART = 'tiles_and_programs or (gelu and half_precision) or (triton_cascade and two_runs)'


@dataclass(frozen=True)
class Settings:
    """How a call is run.

    Attributes:
        device: Where.
        out: Folder of results.
        max_minutes: Of the whole call.
        workers: Processes that check and compile side by side; 0 does that in this one.
        small: Whether shapes are tiny, for a try on a CPU.
        rounds: How often each variant is timed.
        max_seconds: After so many seconds no further round of a case begins, once three are done.
    """

    device: str = 'cuda'
    out: Path = Path('work_dirs/gpu')
    max_minutes: float = 4.5
    workers: int = 12
    small: bool = False
    rounds: int = 9
    max_seconds: float = 0.4

    @property
    def kernel_size(self) -> int:
        """Of LSKA."""
        return 7 if self.small else KERNEL_SIZE

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images."""
        return (64, 96) if self.small else IMAGE

    def stage_shapes(self, batches: Sequence[int] = BATCHES) -> list[tuple[int, int, int, int]]:
        """Shapes of the maps of the four stages of VAN-base."""
        if self.small:
            return [(1, 2, 3, 4)]
        height, width = self.sides
        return [(n, c, height // s, width // s) for n in batches for s, c in WIDE.items()]


@dataclass(frozen=True)
class Case:
    """A call of an operation.

    Attributes:
        operation: A name of ``tuning.OPERATIONS``.
        kernel_size: Of LSKA; 3 before GELU.
        shape: Shape ``(N, C, H, W)`` of the map.
        dtype: Name of the dtype.
        layout: Layout of the map.
        training: Whether gradients are computed too.
    """

    operation: str
    kernel_size: int
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str = 'channels_last'
    training: bool = True

    @property
    def convolutions(self) -> tuning.Convolutions:
        """Kernels and dilations."""
        is_gelu = self.operation == 'depthwise_gelu'
        return tuning.THREE if is_gelu else tuning.separable(self.kernel_size)

    def runs(self, device: torch.device, layouts: Sequence[str]) -> dict[str, tuning.Run]:
        """What is timed, see :func:`mmlska.analysis.tuning.operation_runs`."""
        call = 'triton', self.convolutions, device, self.dtype, self.training, layouts, self.shape
        return tuning.operation_runs(self.operation, *call)

    def but(self, **changes: object) -> 'Case':
        """This case with changes."""
        return dataclasses.replace(self, **changes)

    def record(self) -> Record:
        """As a record."""
        return dict(vars(self), shape=list(self.shape))


# Part 1


def correctness_cases(settings: Settings) -> list[Case]:
    """Kernel sizes, odd and even maps, dtypes, layouts."""
    shapes = [(2, 64, 25, 40), (1, 32, 13, 17), (2, 160, 50, 80)]
    sizes = (7, 23, 53)
    if settings.small:
        shapes, sizes = [(1, 2, 3, 4)], sizes[:1]
    kinds = [('depthwise_cascade', size) for size in sizes] + [('depthwise_gelu', 3)]
    return [
        Case(operation, size, shape, dtype, layout)
        for operation, size in kinds
        for shape in shapes
        for dtype in TOLERANCES
        for layout in tuning.LAYOUTS
    ]


def check(case: Case, device: str) -> Record:
    """Errors of the result and of each gradient against float64 on the CPU."""
    timing.forbid_tf32()
    compute, kind = tuning.OPERATIONS[case.operation], getattr(torch, case.dtype)
    torch.manual_seed(0)
    x = torch.randn(case.shape).to(kind).contiguous(memory_format=tuning.LAYOUTS[case.layout])
    weights = [tuning.random_kernel(case.shape[1], 1, *k).to(kind) for k, _ in case.convolutions]
    biases = [torch.randn(case.shape[1]).to(kind) for _ in weights]
    dilations = [dilation for _, dilation in case.convolutions]
    grad = torch.randn(case.shape).to(kind)

    def run(backend: str, target: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(target, dtype).detach().requires_grad_() for t in (x, *weights, *biases)]
        number = 1 + len(weights)
        with tuning.use_backend(backend), tuning.record_choices() as choices:
            out = compute(leaves[0], leaves[1:number], leaves[number:], dilations)
        if choices[-1].form != backend:
            raise RuntimeError(f'{backend} did not run: {choices[-1].reason}')
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(target, dtype))]

    expected = run('plain', torch.device('cpu'), torch.float64)
    found = run('triton', torch.device(device), kind)
    errors = [timing.relative_error([a.cpu()], [b]) for a, b in zip(found, expected, strict=True)]
    # Written so that it catches NaN.
    passed = all(error <= TOLERANCES[case.dtype] for error in errors)
    return dict(case.record(), errors=errors, passed=passed)


def correctness(settings: Settings, until: float) -> Iterator[Record]:
    """Every case, in as many processes as there are workers."""
    cases = correctness_cases(settings)
    run = functools.partial(check, device=settings.device)
    yield from in_pool(run, cases, settings.workers, until)


def copies(settings: Settings, until: float) -> Iterator[Record]:
    """Bytes a second of a copy, read and written."""
    for name in DTYPES:
        bandwidth = timing.copy_bandwidth(torch.device(settings.device), getattr(torch, name))
        yield dict(dtype=name, bytes_per_second=bandwidth)


def stages(settings: Settings, until: float) -> Iterator[Record]:
    """Cascade and convolution with GELU at the stages: PyTorch's in both layouts, and ours."""
    kinds = (('depthwise_cascade', settings.kernel_size), ('depthwise_gelu', 3))
    cases = []
    for dtype in DTYPES:
        for shape in settings.stage_shapes():
            for operation, size in kinds:
                # The FFN is eight times as wide in the first two stages, four times in the others.
                ratio = 1 if operation != 'depthwise_gelu' else 8 if shape[1] < 320 else 4
                widened = shape[0], shape[1] * ratio, *shape[2:]
                cases += [
                    Case(operation, size, widened, dtype, training=training)
                    for training in (False, True)
                ]
    run = functools.partial(time_variants, torch.device(settings.device), settings)
    yield from in_turn(cases, until, Case.record, run)


def time_variants(device: torch.device, settings: Settings, case: Case) -> Record:
    """Milliseconds of each variant, on the device and by the clock, and the speed-ups of ours."""
    runs = case.runs(device, list(tuning.LAYOUTS))
    samples = timing.time_rounds(runs, settings.rounds, device, settings.max_seconds)
    found = {}
    for name, taken in samples.items():
        spread = timing.Spread.of(1e3 * sample.busy for sample in taken)
        wall = timing.Spread.of(1e3 * sample.wall for sample in taken)
        ratio = timing.ratios(taken, samples['fast'], 'busy')
        found[name] = dict(
            milliseconds=spread.median, wall_milliseconds=wall.median, ratio_to_fast=ratio.median
        )
    return dict(variants=found)


def tune(settings: Settings, until: float) -> Iterator[Record]:
    """The table of which form is faster from which size of map on; fewer sizes than by hand."""
    device = torch.device(settings.device)
    sizes = (2**7,) if settings.small else tuple(2**e for e in range(16, 26, 2))
    curves = [
        curve
        for training in (False, True)
        for dtype in DTYPES
        for curve in tuning.gpu_curves(device, training, dtype, [settings.kernel_size], sizes)
    ]
    minutes = max(0, until - time.monotonic()) / 60
    found, told = tuning.tune(curves, device, minutes)
    place = measured.place_of(device)
    table = tuned.Table(place, report.today(), found)
    tuned.write(settings.out / 'tuned.json', [table])
    for case, least in found.items():
        yield dict(case._asdict(), processor=place.processor, least=least)
    for line in told:
        yield dict(told=line)


def baseline(settings: Settings, until: float) -> Iterator[Record]:
    """PyTorch's own depth-wise convolutions one by one."""
    sizes = dict(batch_sizes=[1] if settings.small else [2], image_size=settings.sides)
    stage = [4] if settings.small else [1, 2, 3, 4]
    cases = depthwise.list_cases(['base'], stage, dtypes=DTYPES, **sizes)
    run = functools.partial(time_convolution, torch.device(settings.device), settings)
    yield from in_turn(cases, until, lambda case: dict(case=str(case)), run)


def time_convolution(
    device: torch.device, settings: Settings, case: depthwise.Case
) -> dict[str, list[Record]]:
    """The three passes of a convolution."""
    rows = depthwise.measure([case], device, 5, False, settings.max_seconds / 2)
    return dict(rows=[vars(row) | dict(case=vars(case)) for row in rows])


# Part 2


def sweep(settings: Settings, until: float) -> Iterator[Record]:
    """The cascade with other launch constants, one at a time, at six shapes."""
    shapes = settings.stage_shapes()
    shapes = shapes if settings.small else [shapes[i] for i in (0, 2, 3, 4, 6, 7)]
    size = settings.kernel_size
    cases = [Case('depthwise_cascade', size, shape, DTYPES[0]) for shape in shapes]
    variants: list[dict[str, int]] = [{}]
    for name, values in CONSTANTS.items():
        if not hasattr(kernels(), name):
            yield dict(constant=name, skipped='the kernels have no such constant')
            continue
        variants += [{name: value} for value in values]
    # Kernels are compiled side by side, into the cache of Triton on the disk.
    jobs = [(case, variant) for case in cases for variant in variants]
    compiled = in_pool(
        functools.partial(compile_variant, settings.device), jobs, settings.workers, until
    )
    yield from (record for record in compiled if 'error' in record)
    both = [case.but(training=training) for case in cases for training in (False, True)]
    run = functools.partial(time_constants, variants, torch.device(settings.device), settings)
    yield from in_turn(both, until, Case.record, run)


def kernels() -> Any:
    """The module of the kernels of the cascade."""
    from mmlska.ops.depthwise_cascade import triton_kernels

    return triton_kernels


@contextmanager
def constants(variant: dict[str, int]) -> Iterator[None]:
    """Let the kernels be launched with other constants."""
    module = kernels()
    changes: dict[str, Any] = dict(variant)
    if 'NUM_WARPS' in variant:
        changes['OPTIONS'] = dict(module.OPTIONS, num_warps=variant['NUM_WARPS'])
    kept = {name: getattr(module, name) for name in changes}
    remembering = [f for f in vars(module).values() if hasattr(f, 'cache_clear')]
    try:
        for name, value in changes.items():
            setattr(module, name, value)
        for function in remembering:
            function.cache_clear()
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)
        for function in remembering:
            function.cache_clear()


def compile_variant(device: str, job: tuple[Case, dict[str, int]]) -> Record:
    """Run a case once with some constants, which compiles its kernels."""
    case, variant = job
    with constants(variant):
        case.runs(torch.device(device), ['channels_last'])['fast']()
    return dict(case.record(), constants=variant)


def time_constants(
    variants: Sequence[dict[str, int]], device: torch.device, settings: Settings, case: Case
) -> Record:
    """How many times faster than the shipped constants others are."""
    fast = case.runs(device, ['channels_last'])['fast']

    def run(variant: dict[str, int]) -> None:
        with constants(variant):
            fast()

    runs = {name_of(variant): functools.partial(run, variant) for variant in variants}
    samples = timing.time_rounds(runs, settings.rounds, device, 2 * settings.max_seconds)
    shipped = samples[name_of({})]
    return dict(
        milliseconds=1e3 * timing.Spread.of(sample.busy for sample in shipped).median,
        speed_ups={
            name: timing.ratios(shipped, taken, 'busy').median for name, taken in samples.items()
        },
    )


def name_of(variant: dict[str, int]) -> str:
    """Constants in words."""
    return ', '.join(f'{name}={value}' for name, value in variant.items()) or 'shipped'


# Part 3


def models(settings: Settings, until: float) -> Iterator[Record]:
    """Blocks and backbones under autocast; two backbones are compiled as well."""
    from .measure import measure

    def run(one: Any) -> Record:
        if settings.device != 'cpu':
            torch.cuda.empty_cache()
        return measure(one).record()

    def name(one: Any) -> Record:
        return dict(what=f'{one.name}, {one.mode}, {one.map_name}')

    yield from in_turn(model_settings(settings), until, name, run)


def model_settings(settings: Settings) -> list[Any]:
    """Cases of the suite for GPUs, the large batch first in time where both are there."""
    from .suites import gpu_suite

    suite = gpu_suite()
    rounds = dict(device=settings.device, rounds=settings.rounds, max_seconds=3.0, compile=False)
    height = IMAGE[0]
    blocks = [
        one.but(**rounds)
        for one in suite['Blocks of VAN-base']
        if one.dtype == DTYPES[0] and one.shape[2] * STRIDES[one.shape[1]] == height
    ]
    backbones = [one.but(**rounds) for one in suite['Backbones'] if one.dtype == DTYPES[0]]
    backbones = [one for one in backbones if one.shape[0] == (2 if one.shape[2] == height else 16)]
    compiled = [one.but(compile=True) for one in backbones if one.arch == 'base']
    compiled = [one for one in compiled if one.shape[0] == 2]
    found = [*blocks, *(one for one in backbones if one.but(compile=True) not in compiled)]
    found += compiled
    if settings.small:
        found = [
            one.but(shape=(1, one.shape[1] if one.case != 'block' else 8, 32, 32), arch='tiny')
            for one in (found[0], found[-1])
        ]
    return found


def memcheck(settings: Settings, until: float) -> Iterator[Record]:
    """A small part of the tests under compute-sanitizer."""
    places = sorted(Path('/usr/local').glob('cuda*/bin/compute-sanitizer'))
    sanitizer = shutil.which('compute-sanitizer') or next(map(str, reversed(places)), None)
    if sanitizer is None:
        yield dict(skipped='there is no compute-sanitizer on this machine')
        return
    command = [sanitizer, '--tool', 'memcheck', '--error-exitcode', '99', sys.executable]
    command += ['-m', 'pytest', '-q', '-x', 'tests/test_ops', '-k', SMALL_PART]
    # Without the cache of PyTorch's allocator every tensor has borders of its own.
    uncached = ['env', 'PYTORCH_NO_CUDA_MEMORY_CACHING=1', *command]
    seconds = max(1.0, until - time.monotonic())
    done = subprocess.run(uncached, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds)
    yield dict(status=done.returncode, passed=done.returncode == 0, tail=done.stdout[-2000:])


# Running

Step = Callable[[Settings, float], Iterator[Record]]
# Steps of each call, with the share of its minutes that each may take.
PARTS: dict[int, list[tuple[Step, float]]] = {
    1: [(correctness, 0.3), (copies, 0.05), (stages, 0.35), (tune, 0.2), (baseline, 0.1)],
    2: [(sweep, 1.0)],
    3: [(models, 0.75), (memcheck, 0.25)],
}


def run_part(number: int, settings: Settings, command: str) -> list[str]:
    """Run the steps of a call; returns what failed.

    A step may use the time that earlier ones left.
    """
    path = settings.out / f'part{number}.json'
    records: list[Record] = []
    limit = time.monotonic()
    for step, share in PARTS[number]:
        limit += 60 * settings.max_minutes * share
        start, before = time.monotonic(), len(records)
        try:
            for record in step(settings, limit):
                records.append(dict(step=step.__name__, **record))
                report.write_json(path, command, settings.device, records)
        except Exception as error:
            # Whatever it is, the other steps wait behind this one.
            records.append(dict(step=step.__name__, error=report.failure(error)))
            report.write_json(path, command, settings.device, records)
        seconds = time.monotonic() - start
        report.tell(f'{step.__name__}: {len(records) - before} results, {seconds:.0f} s')
    return gpu_report.failures_of(records)


def attempt(record: Record, run: Callable[[], Record]) -> Record:
    """What is found of a case; what is missing, or went wrong, in its place."""
    try:
        return record | run()
    except ImportError as error:
        return record | dict(skipped=report.failure(error))
    except Exception as error:
        return record | dict(error=report.failure(error))


def in_turn(
    cases: Sequence[Any],
    until: float,
    name: Callable[[Any], Record],
    run: Callable[[Any], Record],
) -> Iterator[Record]:
    """Run cases one by one, as long as there is time; each gives a record."""
    for done, case in enumerate(cases):
        if time.monotonic() > until:
            yield dict(skipped=f'{len(cases) - done} of {len(cases)}: {OVER}')
            return
        yield attempt(name(case), functools.partial(run, case))


def in_pool(
    run: Callable[[Any], Record], cases: Sequence[Any], workers: int, until: float
) -> Iterator[Record]:
    """Run cases in several processes, as long as there is time; each gives a record."""
    if not workers:
        yield from in_turn(cases, until, lambda case: dict(case=str(case)), run)
        return
    # A process that used a GPU cannot be copied.
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        pending = {pool.submit(run, case): case for case in cases}
        try:
            for done in as_completed(pending, timeout=max(0.1, until - time.monotonic())):
                yield attempt(dict(case=str(pending[done])), done.result)
        except TimeoutError:
            late = sum(future.cancel() for future in pending)
            yield dict(skipped=f'{late} of {len(cases)}: {OVER}')


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.gpu_first',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='part', required=True, metavar='{1,2,3,report}')
    for number, steps in PARTS.items():
        names = ', '.join(step.__name__ for step, _ in steps)
        part = commands.add_parser(str(number), help=names)
        add = part.add_argument
        add('--device', default='cuda', help='cuda (default), cuda:1 ..., or cpu for a try')
        add('--out', type=Path, default=Path('work_dirs/gpu'), help='(default: work_dirs/gpu)')
        add('--max-minutes', type=float, default=4.5, metavar='M', help='(default: 4.5)')
        add('--workers', type=int, default=12, help='processes side by side (default: 12)')
        add('--rounds', type=int, default=9, help='(default: 9)')
        add('--small', action='store_true', help='tiny shapes, to try the script')
    told = commands.add_parser('report', help='tables of the files of the three calls')
    told.add_argument('files', nargs='+', metavar='FILE')
    told.add_argument('--docs', metavar='FILE', help='rewrite the part gpu-first of this document')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a call, or report.

    Raises:
        SystemExit: If a case failed. All are listed.
    """
    args = vars(parse_args(arguments))
    part = args.pop('part')
    with report_errors():
        if part == 'report':
            gpu_report.tell(**args)
            return
        settings = Settings(**args)
        timing.find_device(settings.device)
        timing.forbid_tf32()
        command = shlex.join(['python', '-m', 'benchmarks.gpu_first', *sys.argv[1:]])
        if failures := run_part(int(part), settings, command):
            raise SystemExit('\n'.join(failures))


if __name__ == '__main__':
    main()
