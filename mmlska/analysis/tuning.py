"""Which forms of the operations are faster on this machine, and from which size of the map on.

Each curve is one row of the table in :mod:`mmlska.ops.measured`: an operation, with or without
gradients, kernels of one kind, a dtype. From large maps to small ones the fast form is timed
against PyTorch's own operations, in turns; the row holds from the smallest map on down to which it
always won, for all kernel sizes that were tried. What wins nowhere is written down as such.

On a CPU that is one thread's processor time. On a GPU it is the time between two events, and
PyTorch's operations take the faster one of both memory layouts.
"""

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
import torch.nn.functional as F

from mmlska.ops import (
    add_scaled,
    decompose_kernel,
    depthwise_cascade,
    depthwise_gelu,
    large_kernel_attention,
    measured,
    record_choices,
    row_bands,
    tuned,
    use_backend,
)
from mmlska.ops.depthwise_cascade import onednn
from mmlska.ops.trial import why_failed
from mmlska.ops.triton_support import why_no_triton

from . import timing

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
# Operations of convolutions, from a map, their weights, biases and dilations.
OPERATIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    'depthwise_cascade': depthwise_cascade,
    'depthwise_gelu': lambda x, weights, biases, dilations: depthwise_gelu(x, *weights, *biases),
    'large_kernel_attention': large_kernel_attention,
}
# Maps of powers of two: what images of 100 to 2000 pixels give in the stages of a backbone.
CPU_SIZES = tuple(2**e for e in range(14, 21))
GPU_SIZES = tuple(2**e for e in range(16, 26))
# A whole block, and a feed-forward network by bands, are timed on one map.
BLOCK_SIZE = 2**20
# Channels of the maps, and how many times as many a feed-forward network has in between.
CHANNELS, RATIO = 64, 8
CPU_DTYPES = ('float32',)
GPU_DTYPES = ('float32', 'bfloat16', 'float16')
KERNEL_SIZES = (11, 23, 35)
# A form that wins less than this may lose on the next machine of the same kind.
LEAST_GAIN = 1.03
ROUNDS = 7
SECONDS = 0.2
LARGEST_ERRORS = {'float32': 1e-4, 'float16': 1e-2, 'bfloat16': 5e-2}

Run = Callable[[], Sequence[torch.Tensor]]
Convolutions = tuple[tuple[tuple[int, int], int], ...]


@dataclass(frozen=True)
class Curve:
    """A call that is timed at growing maps.

    Attributes:
        case: The row that it is for.
        label: What distinguishes it from other curves for the same row.
        sizes: Elements of the maps, growing.
        runs: Makes what is timed from the number of elements: the fast form as 'fast', what it is
            to beat under other names.
    """

    case: tuned.Case
    label: str
    sizes: tuple[int, ...]
    runs: Callable[[int], Mapping[str, Run]]

    def __str__(self) -> str:
        return f'{describe(self.case)}, {self.label}'


class Gains(NamedTuple):
    """What was measured of a curve.

    Attributes:
        least: Elements of the smallest map down to which it always won; None if it never did.
        ratios: Time of the best other one to that of the fast form, by elements of the map.
        reason: Why the fast form does not count at all; '' if it does.
    """

    least: int | None
    ratios: dict[int, float]
    reason: str = ''


def describe(case: tuned.Case) -> str:
    """A row in words."""
    parts = [case.operation, case.case, 'training' if case.training else 'inference', case.dtype]
    return ', '.join(part for part in parts if part)


def is_block(case: tuned.Case) -> bool:
    """Whether a row is of a chain of convolutions whose callers know from which size on it pays."""
    return case.operation in measured.KNOWN_BY_CALLERS


def curves_of(
    device: torch.device,
    kernel_sizes: Sequence[int] = KERNEL_SIZES,
    dtypes: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
) -> list[Curve]:
    """All curves for a device.

    Args:
        device: A CPU or a GPU.
        kernel_sizes: Of LSKA, LKA and their forms without dilation.
        dtypes: Names of dtypes. Defaults to those that there are forms for.
        sizes: Elements of the maps, growing. Defaults to powers of two.

    Raises:
        ValueError: If a kernel size is impossible. The message names the nearest.
    """
    on_cpu = device.type == 'cpu'
    dtypes = dtypes or (CPU_DTYPES if on_cpu else GPU_DTYPES)
    sizes = tuple(sizes or (CPU_SIZES if on_cpu else GPU_SIZES))
    make = cpu_curves if on_cpu else gpu_curves
    found = []
    for training in (False, True):
        for dtype in dtypes:
            found += make(device, training, dtype, kernel_sizes, sizes)
    return found


def cpu_curves(
    device: torch.device,
    training: bool,
    dtype: str,
    kernel_sizes: Sequence[int],
    sizes: tuple[int, ...],
) -> Iterator[Curve]:
    """The curves of the forms for a CPU, see :func:`curves_of`."""
    cascades = {f'{kind}, k={k}': make(k) for kind, make in KINDS.items() for k in kernel_sizes}
    # The cascade alone is what is left to choose where the attention is not taken as a whole.
    for name, (label, convolutions) in itertools.product(
        ('large_kernel_attention', 'depthwise_cascade'), cascades.items()
    ):
        for layout, memory_format in LAYOUTS.items():
            kind = onednn.case_of(*zip(*convolutions, strict=True), memory_format)
            if kind:
                call = 'cpu', convolutions, device, dtype, training, [layout]
                case = tuned.Case(name, training, kind, dtype)
                yield Curve(case, label, sizes, _runs_of(name, *call))
    if dtype == 'float32':
        size = (min(BLOCK_SIZE, sizes[-1]),)
        layout = tuned.Case('in_fast_layout', training, '', dtype)
        yield Curve(layout, 'a block', size, functools.partial(layout_runs, training))
        if not training:
            bands = tuned.Case('in_bands', training, '', dtype)
            yield Curve(bands, 'a feed-forward network', size, bands_runs)


def gpu_curves(
    device: torch.device,
    training: bool,
    dtype: str,
    kernel_sizes: Sequence[int],
    sizes: tuple[int, ...],
) -> Iterator[Curve]:
    """The curves of the forms for a GPU, see :func:`curves_of`."""
    calls = [('depthwise_cascade', f'LSKA, k={k}', separable(k)) for k in kernel_sizes]
    calls.append(('depthwise_gelu', '3x3', THREE))
    for name, label, convolutions in calls:
        call = 'triton', convolutions, device, dtype, training, list(LAYOUTS)
        case = tuned.Case(name, training, '', dtype)
        yield Curve(case, label, sizes, _runs_of(name, *call))
    if training:
        runs = functools.partial(residual_runs, 'triton', device, dtype)
        case = tuned.Case('add_scaled', training, '', dtype)
        yield Curve(case, 'to a float32 stream', sizes, runs)


def _runs_of(name: str, *call: Any) -> Callable[[int], Mapping[str, Run]]:
    return lambda elements: operation_runs(name, *call, shape_of(elements))


def separable(kernel_size: int) -> Convolutions:
    """Kernels and dilations of LSKA."""
    local, dilated, d = decompose_kernel(kernel_size)
    return ((1, local), 1), ((local, 1), 1), ((1, dilated), d), ((dilated, 1), d)


def square(kernel_size: int) -> Convolutions:
    """Kernels and dilations of LKA."""
    local, dilated, d = decompose_kernel(kernel_size)
    return ((local, local), 1), ((dilated, dilated), d)


def undilated(kernel_size: int) -> Convolutions:
    """Kernels of LSKA without dilation."""
    return ((1, kernel_size), 1), ((kernel_size, 1), 1)


# The convolution before GELU.
THREE: Convolutions = (((3, 3), 1),)
KINDS = {'LSKA': separable, 'LKA': square, 'LSKATrivial': undilated}


def shape_of(elements: int) -> tuple[int, int, int, int]:
    """Shape ``(1, C, H, W)`` of a map of so many elements; powers of two are met exactly."""
    positions = max(1, elements // CHANNELS)
    height = 1 << (positions.bit_length() - 1) // 2
    return 1, CHANNELS, height, positions // height


def operation_runs(
    name: str,
    backend: str,
    convolutions: Convolutions,
    device: torch.device,
    dtype: str,
    training: bool,
    layouts: Sequence[str],
    shape: Sequence[int],
) -> dict[str, Run]:
    """An operation by its reference form in some layouts, and by a fast one in the last of them.

    Args:
        name: A name of ``OPERATIONS``.
        backend: That of the fast form.
        convolutions: Kernels and dilations.
        device: Where it computes.
        dtype: Name of the dtype.
        training: Whether gradients are computed too.
        layouts: 'contiguous' and 'channels_last', or one of them.
        shape: Shape ``(N, C, H, W)`` of the map.

    Returns:
        What is timed: 'plain' with each of the layouts, and 'fast'.
    """
    compute, kind = OPERATIONS[name], getattr(torch, dtype)
    x = torch.randn(*shape, device=device).to(kind)
    maps = {layout: x.clone(memory_format=LAYOUTS[layout]) for layout in layouts}
    weights = [random_kernel(shape[1], 1, *kernel).to(device, kind) for kernel, _ in convolutions]
    dilations = [dilation for _, dilation in convolutions]
    if name == 'large_kernel_attention':
        # A 1x1 convolution follows those of its cascade.
        weights.append(random_kernel(shape[1], shape[1], 1, 1).to(device, kind))
        dilations.append(1)
    biases = [torch.randn(shape[1], device=device).to(kind) for _ in weights]
    for tensor in (*maps.values(), *weights, *biases):
        tensor.requires_grad_(training)

    def call(backend: str, x: torch.Tensor) -> Sequence[torch.Tensor]:
        leaves = [x, *weights, *biases]
        with use_backend(backend):
            return differentiate(lambda: compute(x, weights, biases, dilations), leaves, training)

    runs = {f'plain {layout}': functools.partial(call, 'plain', x) for layout, x in maps.items()}
    return runs | dict(fast=functools.partial(call, backend, maps[layouts[-1]]))


def residual_runs(backend: str, device: torch.device, dtype: str, elements: int) -> dict[str, Run]:
    """A branch of a dtype that is scaled and added to a float32 map, as autocast makes them."""
    x = torch.randn(shape_of(elements), device=device).to(memory_format=torch.channels_last)
    branch = torch.randn_like(x).to(getattr(torch, dtype))
    leaves = [x, branch, torch.randn(CHANNELS, device=device)]
    for leaf in leaves:
        leaf.requires_grad_()

    def call(name: str) -> Sequence[torch.Tensor]:
        with use_backend(name):
            return differentiate(lambda: add_scaled(*leaves), leaves, True)

    return dict(plain=functools.partial(call, 'plain'), fast=functools.partial(call, backend))


def differentiate(
    compute: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor], training: bool
) -> Sequence[torch.Tensor]:
    """A result, in training with the gradients of its sum of squares."""
    if not training:
        with torch.no_grad():
            return [compute()]
    out = compute()
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach())]


def layout_runs(training: bool, elements: int) -> dict[str, Run]:
    """The convolutions of a block of VAN on a contiguous map, and turned to channels_last first."""
    x = torch.randn(shape_of(elements))
    kernels, dilations = zip(*separable(23), strict=True)
    cascade = [random_kernel(CHANNELS, 1, *kernel) for kernel in kernels]
    project, gate = (random_kernel(CHANNELS, CHANNELS, 1, 1) for _ in range(2))
    network = _network_weights()
    leaves = [x, *cascade, project, gate, *network]

    def block(x: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(F.conv2d(x, project))
        attention = depthwise_cascade(inner, cascade, [None] * len(cascade), dilations)
        x = x + inner * F.conv2d(attention, gate)
        return x + _apply_network(network, x)

    def turned() -> torch.Tensor:
        return block(onednn.to_channels_last(x)).contiguous()

    for leaf in leaves:
        leaf.requires_grad_(training)
    return dict(
        plain=lambda: differentiate(lambda: block(x), leaves, training),
        fast=lambda: differentiate(turned, leaves, training),
    )


def bands_runs(elements: int) -> dict[str, Run]:
    """A feed-forward network of VAN on the whole map, and by bands of rows."""
    x = torch.randn(shape_of(elements)).to(memory_format=torch.channels_last)
    run = functools.partial(_apply_network, _network_weights())
    banded = functools.partial(row_bands.run_in_bands, run, x, 1, RATIO * CHANNELS)
    return dict(
        plain=lambda: differentiate(lambda: run(x), (), False),
        fast=lambda: differentiate(banded, (), False),
    )


def _apply_network(weights: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    expand, spread, reduce = weights
    inner = F.conv2d(F.conv2d(x, expand), spread, padding=1, groups=RATIO * CHANNELS)
    return F.conv2d(F.gelu(inner), reduce)


def _network_weights() -> list[torch.Tensor]:
    """Kernels of the feed-forward network of VAN: 1x1, depth-wise 3x3, 1x1."""
    wide = RATIO * CHANNELS
    return [
        random_kernel(wide, CHANNELS, 1, 1),
        random_kernel(wide, 1, 3, 3),
        random_kernel(CHANNELS, wide, 1, 1),
    ]


def random_kernel(*shape: int) -> torch.Tensor:
    """A kernel that keeps the size of what a map holds."""
    return torch.randn(shape) / torch.Size(shape[1:]).numel() ** 0.5


def measure(
    curve: Curve, device: torch.device, rounds: int = ROUNDS, max_seconds: float = SECONDS
) -> Gains:
    """Time a curve, from the largest map down to the first one on which the fast form loses.

    Args:
        curve: What to time.
        device: Where.
        rounds: How often each side is timed on each map.
        max_seconds: After so many seconds no further round of a map begins, once three are done.
    """
    least, ratios = None, {}
    for elements in reversed(curve.sizes):
        torch.manual_seed(0)
        runs = curve.runs(elements)
        if not ratios and (reason := why_not(curve, runs)):
            return Gains(None, {}, reason)
        samples = timing.time_rounds(runs, rounds, device, max_seconds)
        others = [name for name in runs if name != 'fast']
        found = [timing.ratios(samples[name], samples['fast'], 'busy').median for name in others]
        ratios[elements] = min(found)
        if ratios[elements] < LEAST_GAIN:
            break
        least = 1 if is_block(curve.case) else elements
    return Gains(least, ratios)


def why_not(curve: Curve, runs: Mapping[str, Run]) -> str:
    """Why the fast form does not count: it does not run here, or computes something else."""
    with record_choices() as choices:
        found = runs['fast']()
    if not is_block(curve.case) and choices[-1].form == 'plain':
        return choices[-1].reason
    expected = next(run for name, run in runs.items() if name != 'fast')()
    error = max(timing.relative_error([a], [b]) for a, b in zip(found, expected, strict=True))
    # Written so that it catches NaN.
    allowed = LARGEST_ERRORS[curve.case.dtype]
    return '' if error <= allowed else f'its result is off by {error:.1e}'


def tune(
    curves: Sequence[Curve],
    device: torch.device,
    max_minutes: float,
    measure: Callable[[Curve, torch.device], Gains] = measure,
    stream: TextIO | None = None,
) -> tuple[dict[tuned.Case, int | None], list[str]]:
    """Measure curves, with a bar that shows progress.

    Args:
        curves: What to measure.
        device: Where.
        max_minutes: After so many minutes no further curve begins. A row of which a curve is
            missing is left out.
        measure: Measures one of them.
        stream: Where the bar is drawn. Defaults to None: the standard error.

    Returns:
        Elements of the smallest map of each row, None where the fast form never wins; and what is
        to be told: curves that could not be measured.
    """
    found: dict[tuned.Case, list[int | None]] = {}
    told, late = [], set()
    end = time.monotonic() + 60 * max_minutes
    # What becomes of freed memory is half of the gain of whole blocks, and noise to single calls.
    # Once it is kept, that cannot be undone.
    curves = sorted(curves, key=lambda curve: not is_block(curve.case))
    for curve in progress(curves, stream or sys.stderr):
        if time.monotonic() > end:
            late.add(curve.case)
            continue
        timing.set_allocator('default' if is_block(curve.case) else 'keep')
        gains = measure(curve, device)
        found.setdefault(curve.case, []).append(gains.least)
        if gains.reason:
            told.append(f'{curve}: {gains.reason}')
    told += [f'{describe(case)}: not measured, {max_minutes:g} minutes were over' for case in late]
    return {case: tuned.largest(values) for case, values in found.items() if case not in late}, told


def progress(curves: Sequence[Curve], stream: TextIO, width: int = 24) -> Iterator[Curve]:
    """The curves one by one; a bar tells how far it is, and what comes next."""
    # Where nobody looks on, as in a log, each state has a line of its own.
    before, after = ('\r\033[K', '') if stream.isatty() else ('', '\n')
    start = time.monotonic()
    for done, curve in enumerate([*curves, None]):
        bar = '#' * (width * done // max(1, len(curves)))
        seconds = time.monotonic() - start
        comes = f': {curve}' if curve else '\n'[len(after) :]
        line = f'[{bar:<{width}}] {done}/{len(curves)}, {seconds:.0f} s{comes}'
        stream.write(f'{before}{line}{after}')
        stream.flush()
        if curve:
            yield curve


def changes(processor: str, found: Mapping[tuned.Case, int | None]) -> list[str]:
    """What was found beside what was in force, a line for each row."""
    before = measured.rows_in_force(processor)
    lines = []
    for case, least in found.items():
        row = before.get(measured.Key(processor, *case))
        was, now = 'not known' if row is None else say(row.least), say(least)
        lines.append(f'{describe(case)}: {now}' + ('' if now == was else f' (was: {was})'))
    return lines


def say(least: int | None) -> str:
    """From which size of map on a fast form is taken, in words."""
    if least is None:
        return 'never'
    return 'always' if least == 1 else f'from {least} elements on'


def find_device(name: str | None) -> torch.device:
    """The device of this name; by default the GPU that is current, else the CPU.

    Raises:
        ValueError: If it is not there, or has no fast forms. The message says why.
    """
    if name is None:
        name = f'cuda:{torch.cuda.current_device()}' if torch.cuda.is_available() else 'cpu'
    device = timing.find_device(name)
    if device.type == 'cuda':
        device = torch.device('cuda', device.index or 0)
        if reason := why_no_triton(device) or why_failed(device):
            raise ValueError(f'{device} has no fast forms: {reason}. --device cpu tunes the CPU')
    return device


def run(name: str | None, max_minutes: float, output: str | None) -> None:
    """Measure this machine, write the file, print what changed.

    Args:
        name: Device, see :func:`find_device`.
        max_minutes: After so many minutes no further row begins.
        output: File to write. Defaults to None: the one that is read, see
            :func:`mmlska.ops.tuned.path_in_use`.

    Raises:
        ValueError: If the device is not there, or no file is in use and none was named.
        OSError: If the file cannot be written.
    """
    path = Path(output) if output else tuned.path_in_use()
    if path is None:
        raise ValueError(
            f'no file is read, by {tuned.ENVIRONMENT_VARIABLE}={tuned.OFF} or because there is no '
            'home folder: name one to write with --output'
        )
    # Known before minutes are spent.
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f'no file can be written into {str(path.parent)!r}: see --output')
    device = find_device(name)
    place = measured.place_of(device)
    print(f'{place}: {max_minutes:g} minutes at most', flush=True)
    # The processor time of one thread counts no time in which others hold the processor.
    torch.set_num_threads(1)
    timing.forbid_tf32()
    found, told = tune(curves_of(device), device, max_minutes)
    print(*changes(place.processor, found), sep='\n')
    print(*told, sep='\n', end='\n' if told else '')
    table = tuned.Table(place, date.today().isoformat(), found)
    try:
        tables = tuned.read(path)
    except tuned.TunedFileError as error:
        print(f'{error}; it is replaced')
        tables = []
    tuned.write(path, tuned.merged(tables, table))
    print(f'written to {path}')
    if path != tuned.path_in_use():
        print(f'{tuned.ENVIRONMENT_VARIABLE}={path} takes it into force')
