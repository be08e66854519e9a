"""Time and memory of functions that compute the same thing in different ways."""

import ctypes
import functools
import gc
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

# A clock is read this long after it was started, or later: short runs are repeated.
LEAST_SECONDS = 0.005
LEAST_ROUNDS = 3
# Options of mallopt() of the GNU C library, and their values.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
ALLOCATORS = {'keep': 2**30, 'return': 2**16}
# What is copied to measure the bandwidth: large enough to fill no cache.
COPY_MEGABYTES = {'cpu': 128, 'cuda': 1024}


class Sample(NamedTuple):
    """Seconds of one run.

    Attributes:
        busy: Processor time of this process; on a GPU the time between two events in its stream.
        wall: Time by the clock on the wall.
    """

    busy: float
    wall: float


class Spread(NamedTuple):
    """Quartiles of a sample."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> 'Spread':
        """The quartiles of one value or more.

        >>> Spread.of([4, 1, 3, 2, 5])
        Spread(lower=2.0, median=3.0, upper=4.0)
        """
        values = list(values)
        if len(values) == 1:
            return cls(*values * 3)
        return cls(*statistics.quantiles(values, n=4, method='inclusive'))


def set_allocator(name: str) -> bool:
    """Fix what the C library does with freed memory on the CPU.

    By itself it learns from the sizes that a process frees whether to keep large pieces or to give
    them back. Memory that was given back costs a page fault for every 4 KiB when it is used again,
    which is up to half of the time of a light operation: times of the same code differ twofold with
    what ran before.

    Args:
        name: 'keep' keeps what was freed, 'return' gives pieces of 64 KiB and more back at once,
            'default' leaves the library to itself.

    Returns:
        Whether it took effect; only the GNU C library has this.
    """
    if name == 'default':
        return True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    size = ALLOCATORS[name]
    return all([mallopt(M_MMAP_THRESHOLD, size), mallopt(M_TRIM_THRESHOLD, size)])


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: If it is neither a CPU nor a GPU that is there.
    """
    device = torch.device(name)
    if device.type not in COPY_MEGABYTES:
        raise ValueError(f"device {name!r} is not measured: choose 'cpu' or 'cuda'")
    number = torch.cuda.device_count()
    if device.type == 'cuda' and (device.index or 0) >= number:
        raise ValueError(
            f"device {name!r} is not there: PyTorch sees {number} CUDA devices; 'cpu' is always one"
        )
    return device


def forbid_tf32() -> None:
    """Let a GPU compute float32 as float32; by default its convolutions round to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def headline_clock(device: torch.device, threads: int) -> str:
    """The field of :class:`Sample` that ratios are taken from.

    The processor time of one thread does not count the time in which other processes hold the
    processor. That of several threads counts the time in which they wait for each other.
    """
    return 'busy' if device.type == 'cuda' or threads == 1 else 'wall'


def time_rounds(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    max_seconds: float = math.inf,
    warm_up: bool = True,
) -> dict[str, list[Sample]]:
    """Time functions in turns, in a new order each round.

    Args:
        runs: Functions by name.
        rounds: How often each is timed.
        device: Where they compute.
        max_seconds: After so many seconds no further round begins, once three are done.
        warm_up: Whether to call each before, and to repeat short ones within a round, all equally
            often, so that the shortest takes some milliseconds.

    Returns:
        Seconds of one call of each function in each round.
    """
    order = list(runs)
    repeats = _warm_up(runs.values(), device) if warm_up else 1
    samples = {name: [] for name in runs}
    shuffle = random.Random(0).shuffle
    end = time.monotonic() + max_seconds
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= LEAST_ROUNDS and time.monotonic() > end:
                break
            shuffle(order)
            for name in order:
                samples[name].append(time_once(runs[name], device, repeats))
    finally:
        gc.enable()
    return samples


def _warm_up(runs: Iterable[Callable[[], object]], device: torch.device) -> int:
    """Call each once, and short ones once more; returns how often to repeat them."""
    first = min(time_once(run, device).wall for run in runs)
    # What is shorter was prolonged by all that a first call does.
    shortest = first if first > 20 * LEAST_SECONDS else min(time_once(r, device).wall for r in runs)
    return max(1, math.ceil(LEAST_SECONDS / max(shortest, 1e-7)))


def time_once(run: Callable[[], object], device: torch.device, repeats: int = 1) -> Sample:
    """Seconds that a call takes, as the mean of some in a row."""
    if device.type == 'cuda':
        return _time_on_gpu(run, device, repeats)
    busy, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        run()
    busy, wall = time.process_time() - busy, time.perf_counter() - wall
    return Sample(busy / repeats, wall / repeats)


def _time_on_gpu(run, device, repeats):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    wall = time.perf_counter()
    start.record(torch.cuda.current_stream(device))
    for _ in range(repeats):
        run()
    end.record(torch.cuda.current_stream(device))
    end.synchronize()
    wall = time.perf_counter() - wall
    return Sample(start.elapsed_time(end) / 1e3 / repeats, wall / repeats)


def ratios(reference: Sequence[Sample], other: Sequence[Sample], clock: str) -> Spread:
    """How many times faster the other one is: quartiles over the rounds."""
    pairs = zip(reference, other, strict=True)
    return Spread.of(getattr(a, clock) / getattr(b, clock) for a, b in pairs)


def relative_times(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Times as multiples of the first one's: medians of the ratios within rounds, in turns."""
    samples = time_rounds(runs, rounds, device)
    reference = next(iter(samples.values()))
    clock = headline_clock(device, torch.get_num_threads())
    return {name: ratios(taken, reference, clock).median for name, taken in samples.items()}


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that tensors made by a call take at once, results included.

    On the CPU PyTorch's profiler records each allocation; what libraries take beside PyTorch's
    allocator does not count.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    held = peak = 0
    for change in _allocations(profile):
        held += change
        peak = max(peak, held)
    return peak


def _allocations(profile: torch.profiler.profile) -> list[int]:
    """Bytes that the CPU's allocator gave (positive) and got back, in the order of time."""
    # The trace is the one public place that has them one by one.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        profile.export_chrome_trace(os.fspath(path))
        events = json.loads(path.read_text(errors='replace', encoding='utf-8'))['traceEvents']
    changes = [event for event in events if event.get('name') == '[memory]']
    changes.sort(key=lambda event: event['ts'])
    return [event['args']['Bytes'] for event in changes if event['args']['Device Type'] == 0]


@functools.cache
def copy_bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second, read and written, of the copy of a large tensor: the median of nine."""
    source = torch.ones(COPY_MEGABYTES[device.type] * 2**20 // dtype.itemsize, dtype=dtype)
    source = source.to(device)
    target = torch.empty_like(source)
    samples = time_rounds({'copy': lambda: target.copy_(source)}, 9, device)['copy']
    return 2 * source.nbytes / statistics.median(sample.busy for sample in samples)


def relative_error(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Norm of all differences, as a share of the norm of what is wanted."""
    difference = sum(
        (a.double() - b.double()).square().sum() for a, b in zip(got, wanted, strict=True)
    )
    size = sum(b.double().square().sum() for b in wanted)
    return float((difference / size).sqrt())
