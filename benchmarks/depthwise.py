"""What PyTorch itself makes of the depth-wise convolutions of VAN-LSKA, one by one.

On a GPU the memory layout decides which library computes them: contiguous maps mostly go to
PyTorch's own kernels, channels_last maps to cuDNN. Which of them a compiler or kernels of our own
can beat, and where, is read from this table.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mmlska.analysis import timing
from mmlska.layers import decompose_kernel

from . import report
from .suites import TINY, WIDE

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
COMPILED = 'compiled'
# Channels of the maps by their stride; written out, since the backbone itself needs mmcv.
ARCHS = {'tiny': TINY, 'base': WIDE}
# How many times as many channels an FFN has, by stage.
FFN_RATIOS = (8, 8, 4, 4)
DTYPES = ('float32', 'bfloat16', 'float16')
COLUMNS = ('VAN', 'stage', 'map', 'kernel', 'dtype', 'pass')


@dataclass(frozen=True)
class Case:
    """A depth-wise convolution that keeps the size of its map, in a stage of a backbone.

    Attributes:
        arch: Architecture of VAN.
        stage: Stage, the first one being 1.
        kernel: Kernel and dilation, as in a table.
        shape: ``(N, C, H, W)`` of the map.
        kernel_size: Rows and columns of the kernel.
        dilation: Dilation along both axes.
        dtype: Name of the dtype.
    """

    arch: str
    stage: int
    kernel: str
    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int]
    dilation: int
    dtype: str

    @property
    def padding(self) -> list[int]:
        """Zeros on either side that keep the size of the map."""
        return [self.dilation * (size // 2) for size in self.kernel_size]


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


def convolutions(kernel_size: int) -> list[tuple[tuple[int, int], int]]:
    """Kernel and dilation of the four convolutions of LSKA, in their order."""
    local, dilated, d = decompose_kernel(kernel_size)
    return [((1, local), 1), ((local, 1), 1), ((1, dilated), d), ((dilated, 1), d)]


def list_cases(
    archs: Sequence[str] = ('tiny', 'base'),
    stages: Sequence[int] = (1, 2, 3, 4),
    batch_sizes: Sequence[int] = (2, 16),
    dtypes: Sequence[str] = DTYPES,
    image_size: Sequence[int] = (800, 1280),
    kernel_size: int = 23,
) -> list[Case]:
    """All cases of these architectures, stages, batch sizes and dtypes.

    In each stage these are the four convolutions of LSKA, and the one of the FFN.

    Raises:
        ValueError: If one of them is unknown or not possible. The message names what is.
    """
    _check_known('architecture', archs, ARCHS)
    _check_known('stage', stages, (1, 2, 3, 4))
    _check_known('dtype', dtypes, DTYPES)
    if min(*batch_sizes, *image_size) < 1:
        raise ValueError(
            f'batch sizes and image sizes must be positive, but got {batch_sizes} and {image_size}'
        )
    cases = []
    for arch, stage, batch_size, dtype in itertools.product(archs, stages, batch_sizes, dtypes):
        stride = 2 ** (stage + 1)
        height, width = (-(-side // stride) for side in image_size)
        channels, ratio = ARCHS[arch][stride], FFN_RATIOS[stage - 1]
        for (h, w), d in convolutions(kernel_size):
            name = f'{h} x {w}' + (f', dilation {d}' if d > 1 else '')
            shape = batch_size, channels, height, width
            cases.append(Case(arch, stage, name, shape, (h, w), d, dtype))
        shape = batch_size, int(channels * ratio), height, width
        cases.append(Case(arch, stage, '3 x 3 of the FFN', shape, (3, 3), 1, dtype))
    return cases


def measure(
    cases: Sequence[Case],
    device: torch.device,
    rounds: int = 9,
    with_compiled: bool = True,
    max_seconds: float = 1.0,
) -> Iterator[Row]:
    """Time the three passes of each case, the variants of each in turns.

    Args:
        cases: What to measure.
        device: CPU or GPU.
        rounds: How often each variant is timed.
        with_compiled: Also time what ``torch.compile`` makes of the contiguous map.
        max_seconds: After so many seconds no further round of a pass begins, once three are done.

    Yields:
        Row: A pass of a case.
    """
    timing.forbid_tf32()
    for case, direction in itertools.product(cases, PASSES):
        runs = {name: one_pass(case, direction, device, layout) for name, layout in LAYOUTS.items()}
        kernels = {name: longest_kernel(run, device) for name, run in runs.items()}
        if with_compiled:
            torch._dynamo.reset()
            compiled = torch.compile(PASSES[direction])
            runs[COMPILED] = one_pass(case, direction, device, LAYOUTS['contiguous'], compiled)
        samples = timing.time_rounds(runs, rounds, device, max_seconds)
        times = {
            name: 1e3 * timing.Spread.of(sample.busy for sample in taken).median
            for name, taken in samples.items()
        }
        dtype = getattr(torch, case.dtype)
        copied = 2 * dtype.itemsize * torch.Size(case.shape).numel()
        copy = 1e3 * copied / timing.copy_bandwidth(device, dtype)
        yield Row(case, direction, times, kernels, copy)


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
    cells = []
    for row in rows:
        case, best = row.case, row.copy_milliseconds / min(row.milliseconds.values())
        cells.append(
            [
                case.arch,
                str(case.stage),
                ' x '.join(map(str, case.shape)),
                case.kernel,
                case.dtype,
                row.direction,
                *(report.number(row.milliseconds[name]) for name in variants),
                report.number(row.copy_milliseconds),
                f'{100 * best:.0f} %',
            ]
        )
    numbers = (*variants, 'copy', 'best of copy')
    return report.table(dict.fromkeys(COLUMNS, 'left') | dict.fromkeys(numbers, 'right'), cells)


def one_pass(
    case: Case,
    direction: str,
    device: torch.device,
    layout: torch.memory_format,
    compute: Callable | None = None,
) -> Callable[[], Any]:
    """A pass as a function of nothing, on random values."""
    options = dict(dtype=getattr(torch, case.dtype), device=device)
    grad, x = (torch.randn(case.shape, **options).contiguous(memory_format=layout) for _ in '12')
    weight = torch.randn(case.shape[1], 1, *case.kernel_size, **options)
    arguments = (grad, x, weight, weight[:, 0, 0, 0].clone(), case.padding, case.dilation)
    return functools.partial(torch.no_grad()(compute or PASSES[direction]), *arguments)


def _forward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    padding: list[int],
    dilation: int,
) -> torch.Tensor:
    return F.conv2d(x, weight, bias, 1, padding, dilation, len(weight))


def _gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    padding: list[int],
    dilation: int,
    mask: list[bool],
) -> tuple[torch.Tensor | None, ...]:
    c = len(weight)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [c], [1, 1], padding, [dilation] * 2, False, [0, 0], c, mask
    )


PASSES = {
    'forward': _forward,
    'data gradient': functools.partial(_gradients, mask=[True, False, False]),
    'weight gradient': functools.partial(_gradients, mask=[False, True, True]),
}


def _check_known(kind: str, names: Sequence[Any], known: Sequence[Any]) -> None:
    for name in names:
        if name not in known:
            allowed = ', '.join(map(str, known))
            raise ValueError(f'{kind} {name!r} is unknown: allowed are {allowed}')
