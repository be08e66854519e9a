"""What PyTorch itself makes of the depth-wise convolutions of VAN-LSKA, one by one.

On a GPU the memory layout decides which library computes them: contiguous maps mostly go to
PyTorch's own kernels, channels_last maps to cuDNN. Which of them a compiler or kernels of our own
can beat, and where, is read from this table.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mmlska.layers import decompose_kernel
from mmlska.models.backbones.van import VAN

from . import report, timing

PASSES = ('forward', 'data gradient', 'weight gradient')
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
COMPILED = 'compiled'
DTYPES = {name: getattr(torch, name) for name in ('float32', 'bfloat16', 'float16')}
# Large enough to fill no cache.
COPY_MEGABYTES = {'cpu': 64, 'cuda': 1024}


class Conv(NamedTuple):
    """A depth-wise convolution that keeps the size of the map.

    Attributes:
        name: Kernel and dilation, as in a table.
        channels: Channels of the map.
        kernel_size: Rows and columns of the kernel.
        dilation: Dilation along both axes.
    """

    name: str
    channels: int
    kernel_size: tuple[int, int]
    dilation: int

    @property
    def padding(self) -> list[int]:
        """Zeros on either side that keep the size of the map."""
        return [self.dilation * (size // 2) for size in self.kernel_size]


@dataclass(frozen=True)
class Case:
    """A convolution on the map of one stage of a backbone.

    Attributes:
        arch: Architecture of VAN.
        stage: Stage, the first one being 1.
        conv: The convolution.
        batch_size: Images.
        size: Rows and columns of the map.
        dtype: Name of the dtype.
    """

    arch: str
    stage: int
    conv: Conv
    batch_size: int
    size: tuple[int, int]
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the map."""
        return self.batch_size, self.conv.channels, *self.size


@dataclass
class Row:
    """What was measured of one pass of a case.

    Attributes:
        case: The convolution and its map.
        direction: One of ``PASSES``.
        milliseconds: Median time by variant: the two layouts, and compiled.
        kernels: What took most of the time, by layout, as the profiler names it.
        copy_milliseconds: Time to read and write as much at the measured bandwidth of a copy.
    """

    case: Case
    direction: str
    milliseconds: dict[str, float]
    kernels: dict[str, str]
    copy_milliseconds: float


def convolutions(channels: int, ffn_ratio: float, kernel_size: int) -> list[Conv]:
    """The four convolutions of LSKA and the one of the FFN, in the order in which a block has them.

    Args:
        channels: Channels of the stage.
        ffn_ratio: Hidden channels of the FFN, in multiples of these.
        kernel_size: Kernel size of LSKA.
    """
    local, dilated, d = decompose_kernel(kernel_size)
    kernels = [((1, local), 1), ((local, 1), 1), ((1, dilated), d), ((dilated, 1), d)]
    found = [
        Conv(f'{h} x {w}' + (f', dilation {step}' if step > 1 else ''), channels, (h, w), step)
        for (h, w), step in kernels
    ]
    return [*found, Conv('3 x 3 of the FFN', int(channels * ffn_ratio), (3, 3), 1)]


def list_cases(
    archs: Sequence[str] = ('tiny', 'base'),
    stages: Sequence[int] = (1, 2, 3, 4),
    batch_sizes: Sequence[int] = (2, 16),
    dtypes: Sequence[str] = tuple(DTYPES),
    image_size: tuple[int, int] = (800, 1280),
    kernel_size: int = 23,
) -> list[Case]:
    """All cases of these architectures, stages, batch sizes and dtypes.

    Raises:
        ValueError: If one of them is unknown or not possible. The message names what is.
    """
    _check_known('architecture', archs, VAN.arch_zoo)
    _check_known('stage', stages, (1, 2, 3, 4))
    _check_known('dtype', dtypes, DTYPES)
    if min(*batch_sizes, *image_size) < 1:
        raise ValueError(
            f'batch sizes and image sizes must be positive, but got {batch_sizes} and {image_size}'
        )
    cases = []
    for arch, stage, batch_size, dtype in itertools.product(archs, stages, batch_sizes, dtypes):
        settings = VAN.arch_zoo[arch]
        size = tuple(-(-side // 2 ** (stage + 1)) for side in image_size)
        channels, ratio = settings['embed_dims'][stage - 1], settings['ffn_ratios'][stage - 1]
        cases += [
            Case(arch, stage, conv, batch_size, size, dtype)
            for conv in convolutions(channels, ratio, kernel_size)
        ]
    return cases


def measure(
    cases: Sequence[Case],
    device: str = 'cuda',
    rounds: int = 9,
    with_compiled: bool = True,
    max_seconds: float = 1.0,
) -> Iterator[Row]:
    """Time the three passes of each case, the variants of each in turns.

    Args:
        cases: What to measure.
        device: 'cpu' or 'cuda', or a single GPU such as 'cuda:1'.
        rounds: How often each variant is timed.
        with_compiled: Also time what ``torch.compile`` makes of the contiguous map.
        max_seconds: After so many seconds no further round of a pass begins, once three are done.

    Yields:
        Row: A pass of a case.

    Raises:
        ValueError: If the device is not there.
    """
    found = find_device(device)
    bandwidths = {}
    for case in cases:
        dtype = DTYPES[case.dtype]
        if dtype not in bandwidths:
            megabytes = COPY_MEGABYTES[found.type]
            bandwidths[dtype] = timing.copy_bandwidth(found, dtype, megabytes)
        for direction in PASSES:
            runs = {name: _run(case, direction, found, layout) for name, layout in LAYOUTS.items()}
            kernels = {name: longest_kernel(run, found) for name, run in runs.items()}
            if with_compiled:
                torch._dynamo.reset()
                compiled = torch.compile(COMPUTE[direction])
                runs[COMPILED] = _run(case, direction, found, LAYOUTS['contiguous'], compiled)
            samples = timing.time_rounds(runs, rounds, found, max_seconds)
            times = {
                name: 1e3 * timing.Spread.of(sample.busy for sample in taken).median
                for name, taken in samples.items()
            }
            size = torch.empty((), dtype=dtype).element_size()
            copied = 2 * size * torch.Size(case.shape).numel()
            yield Row(case, direction, times, kernels, 1e3 * copied / bandwidths[dtype])


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: If it is neither a CPU nor a GPU that is there.
    """
    device = torch.device(name)
    if device.type not in COPY_MEGABYTES:
        raise ValueError(f"device {name!r} is not measured: choose 'cuda' or 'cpu'")
    number = torch.cuda.device_count()
    if device.type == 'cuda' and (device.index or 0) >= number:
        raise ValueError(
            f"device {name!r} is not there: PyTorch sees {number} CUDA devices; 'cpu' is always one"
        )
    return device


def longest_kernel(run: Callable[[], object], device: torch.device) -> str:
    """Name of what takes most of the time of a call: a kernel on a GPU, an operation on a CPU."""
    on_gpu = device.type == 'cuda'
    activities = torch.profiler.ProfilerActivity
    run()
    with torch.profiler.profile(
        activities=[activities.CUDA if on_gpu else activities.CPU]
    ) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    clock = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
    events = [event for event in profile.key_averages() if getattr(event, clock) > 0]
    return max(events, key=lambda event: getattr(event, clock)).key if events else ''


def table(rows: Sequence[Row]) -> str:
    """Markdown table: milliseconds, and the share of the bandwidth of a copy that the best gets."""
    variants = list(rows[0].milliseconds) if rows else list(LAYOUTS)
    header = ['VAN', 'stage', 'map', 'kernel', 'dtype', 'pass', *variants, 'copy', 'best of copy']
    lines = [header, [':--'] * 6 + ['--:'] * (len(variants) + 2)]
    for row in rows:
        best = row.copy_milliseconds / min(row.milliseconds.values())
        case = row.case
        lines.append(
            [
                case.arch,
                str(case.stage),
                ' x '.join(map(str, case.shape)),
                case.conv.name,
                case.dtype,
                row.direction,
                *(report.number(row.milliseconds[name]) for name in variants),
                report.number(row.copy_milliseconds),
                f'{100 * best:.0f} %',
            ]
        )
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write_json(path: str | Path, rows: Sequence[Row], command: str, device: str) -> None:
    """Write all rows with the machine, the date and the command."""
    record: dict[str, Any] = dict(
        command=command,
        date=report.today(),
        machine=report.machine(device),
        rows=[asdict(row) for row in rows],
    )
    Path(path).write_text(json.dumps(record, indent=1) + '\n')


def _forward(grad, x, weight, bias, padding, dilation):
    return F.conv2d(x, weight, bias, 1, padding, dilation, len(weight))


def _gradients(grad, x, weight, bias, padding, dilation, mask):
    c = len(weight)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [c], [1, 1], padding, [dilation] * 2, False, [0, 0], c, mask
    )


COMPUTE = {
    'forward': _forward,
    'data gradient': functools.partial(_gradients, mask=[True, False, False]),
    'weight gradient': functools.partial(_gradients, mask=[False, True, True]),
}


def _run(case, direction, device, layout, compute=None):
    """The pass as a function of nothing, on random values."""
    options = dict(dtype=DTYPES[case.dtype], device=device)
    conv = case.conv
    grad, x = (torch.randn(case.shape, **options).contiguous(memory_format=layout) for _ in '12')
    weight = torch.randn(conv.channels, 1, *conv.kernel_size, **options)
    arguments = (grad, x, weight, weight[:, 0, 0, 0].clone(), conv.padding, conv.dilation)
    compute = compute or COMPUTE[direction]

    def run():
        with torch.no_grad():
            return compute(*arguments)

    return run


def _check_known(kind, names, known):
    for name in names:
        if name not in known:
            allowed = ', '.join(map(str, known))
            raise ValueError(f'{kind} {name!r} is unknown: allowed are {allowed}')
