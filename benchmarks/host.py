"""What the host takes for a call before the device has anything to do; no GPU is needed.

On small maps a GPU waits for its launches. Timed is the cascade of LSKA on a map of one channel and
one position, which is next to no work: by four ``conv2d``, by our function where it chooses these,
and by our kernels, everything but their launches. What a launch takes is left out on both sides; on
a GPU there are four of them forward by PyTorch, two by ours. In training all gradients are
computed, those of the map among them, and none is added to one from before.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F

from mmlska.analysis import timing, tuning
from mmlska.ops import depthwise_cascade, record_choices, trial, use_backend

from . import report

CPU = torch.device('cpu')
PLAIN, CHOSEN, OURS = 'four conv2d', 'ours, choosing these', 'ours, kernels not launched'
# Most that ours may take, as a multiple of the four convolutions.
GOALS = {'forward': 1.3, 'train': 1.5}
COLUMNS = {'mode': 'left'} | dict.fromkeys(
    (f'{PLAIN} (µs)', f'{CHOSEN} (µs)', f'{OURS} (µs)', 'ratio', 'goal'), 'right'
)


class Row(NamedTuple):
    """What was measured of a mode.

    Attributes:
        mode: 'forward' or 'train'.
        microseconds: Processor time of a call by variant.
        ratio: That of our kernels to that of the four convolutions: quartiles.
    """

    mode: str
    microseconds: Mapping[str, float]
    ratio: timing.Spread


class NoLaunch:
    """Stands in for a kernel: takes a grid and arguments, and starts nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """What would launch it."""
        return lambda *arguments, **options: None


@contextlib.contextmanager
def without_launches() -> Iterator[None]:
    """Let the CPU count as a device on which the kernels run, and launch none."""
    with contextlib.ExitStack() as changes:
        changes.enter_context(patch.dict(os.environ, TRITON_INTERPRET='1'))
        from mmlska.ops.depthwise_cascade import triton_kernels

        changes.enter_context(patch.dict(trial._outcomes, {CPU: ''}))
        for name in vars(triton_kernels):
            if name.endswith('_kernel'):
                changes.enter_context(patch.object(triton_kernels, name, NoLaunch()))
        yield


def calls(training: bool) -> dict[str, Callable[[], Any]]:
    """The cascade by four convolutions, and by ours."""
    kernels, dilations = zip(*tuning.separable(23), strict=True)
    # In a network the map has a gradient, too.
    x = torch.ones(1, 1, 1, 1, requires_grad=training)
    weights = [torch.ones(1, 1, *kernel, requires_grad=training) for kernel in kernels]
    biases = [torch.ones(1, requires_grad=training) for _ in kernels]
    paddings = [
        [d * (size // 2) for size in kernel] for kernel, d in zip(kernels, dilations, strict=True)
    ]

    def convolve() -> torch.Tensor:
        out = x
        for weight, bias, padding, d in zip(weights, biases, paddings, dilations, strict=True):
            out = F.conv2d(out, weight, bias, 1, padding, d, 1)
        return out

    def by(backend: str) -> Sequence[torch.Tensor]:
        with use_backend(backend):
            return run(lambda: depthwise_cascade(x, weights, biases, dilations))

    run = functools.partial(tuning.differentiate, leaves=[x, *weights, *biases], training=training)
    return {
        PLAIN: lambda: run(convolve),
        CHOSEN: functools.partial(by, 'auto'),
        OURS: functools.partial(by, 'triton'),
    }


def measure(rounds: int, max_seconds: float = 20.0) -> list[Row]:
    """Time both modes, all variants in turns.

    Args:
        rounds: How often each is timed.
        max_seconds: After so many seconds no further round begins, once three are done.

    Raises:
        RuntimeError: If the kernels cannot be taken.
    """
    torch.set_num_threads(1)
    rows = []
    with without_launches():
        for mode in GOALS:
            runs = calls(mode == 'train')
            with record_choices() as choices:
                runs[OURS]()
            if choices[-1].form != 'triton':
                raise RuntimeError(f'the kernels cannot be taken: {choices[-1].reason}')
            samples = timing.time_rounds(runs, rounds, CPU, max_seconds)
            times = {
                name: 1e6 * timing.Spread.of(sample.busy for sample in taken).median
                for name, taken in samples.items()
            }
            rows.append(Row(mode, times, timing.ratios(samples[OURS], samples[PLAIN], 'busy')))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown table."""
    return report.table(
        COLUMNS,
        [
            [
                row.mode,
                *(report.number(row.microseconds[name]) for name in (PLAIN, CHOSEN, OURS)),
                f'**{row.ratio.median:.2f}** [{row.ratio.lower:.2f}, {row.ratio.upper:.2f}]',
                f'{GOALS[row.mode]:.1f}',
            ]
            for row in rows
        ],
    )
