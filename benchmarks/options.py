"""What the training options cost and save on this machine's CPU."""

from collections.abc import Callable

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from torch import nn

from mmlska.analysis import timing
from mmlska.models import VAN, ContainerLight, GhostNetV2

from . import report
from .coco_results import evaluate, make_results

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    'VAN-LSKA-tiny': lambda **kwargs: VAN('tiny', **kwargs),
    'GhostNetV2 1.0x': lambda **kwargs: GhostNetV2(1.0, **kwargs),
    'ContainerLight': lambda **kwargs: ContainerLight(**kwargs),
}
TRAINING_COLUMNS = {'backbone': 'left'} | dict.fromkeys(
    (
        '`with_cp`: peak memory',
        '`with_cp`: time',
        '`bf16` on the CPU: time',
        '`fused_optimizer`: time of its step',
        'none once more: time',
    ),
    'right',
)
EVALUATION_COLUMNS = {'': 'left'} | dict.fromkeys(
    ('pycocotools (s)', 'faster-coco-eval (s)', 'ratio', 'largest difference of an AP or AR'),
    'right',
)
CPU = torch.device('cpu')


def training_table(shape: tuple[int, int, int, int], rounds: int) -> str:
    """Markdown table of one training step of each backbone, as multiples of one without options.

    Args:
        shape: Shape ``(N, 3, H, W)`` of the images.
        rounds: How often each is timed.
    """
    rows = []
    for name in track_iter_progress(list(BACKBONES)):
        peaks = [peak_memory(name, with_cp, shape) for with_cp in (False, True)]
        rows.append(
            [
                name,
                f'{peaks[0] / 2**20:.0f} to {peaks[1] / 2**20:.0f} MiB, ×{peaks[1] / peaks[0]:.2f}',
                *(f'×{ratio:.2f}' for ratio in step_times(name, shape, rounds)),
            ]
        )
    return report.table(TRAINING_COLUMNS, rows)


def evaluation_table(num_images: int) -> str:
    """Markdown table of one evaluation of made-up results with each library."""
    rows, dump = [], make_results(num_images)
    for iou_type, label in (('bbox', 'boxes'), ('segm', 'masks')):
        slow, seconds = evaluate(*dump, iou_type, fast=False)
        fast, fewer = evaluate(*dump, iou_type, fast=True)
        difference = np.abs(fast.stats - slow.stats).max()
        times = f'{seconds:.1f}', f'{fewer:.1f}', f'×{seconds / fewer:.1f}'
        rows.append([label, *times, f'{difference:.0e}'])
    return report.table(EVALUATION_COLUMNS, rows)


def train_step(model: nn.Module, x: torch.Tensor, bf16: bool = False) -> None:
    """One forward and one backward pass, which leave their gradients."""
    model.zero_grad()
    add_gradients(model, x, bf16)


def add_gradients(model: nn.Module, x: torch.Tensor, bf16: bool = False) -> None:
    """One forward and one backward pass, which add to the gradients that are there."""
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
        maps = model(x)
    sum(out.float().square().mean() for out in maps).backward()


def step_times(name: str, shape: tuple[int, int, int, int], rounds: int) -> list[float]:
    """Times of recomputation, bfloat16, the fused AdamW and of no option, in the table's order."""
    model, saving = BACKBONES[name]().train(), BACKBONES[name](with_cp=True).train()
    x = torch.rand(shape)
    passes = timing.relative_times(
        dict(
            none=lambda: train_step(model, x),
            with_cp=lambda: train_step(saving, x),
            bf16=lambda: train_step(model, x, bf16=True),
            again=lambda: train_step(model, x),
        ),
        rounds,
        CPU,
    )
    plain, fused = (torch.optim.AdamW(model.parameters(), fused=fused) for fused in (False, True))
    steps = timing.relative_times(dict(plain=plain.step, fused=fused.step), 3 * rounds, CPU)
    return [passes['with_cp'], passes['bf16'], steps['fused'], passes['again']]


def peak_memory(name: str, with_cp: bool, shape: tuple[int, int, int, int]) -> int:
    """Bytes that a training step needs beside the weights and their gradients."""
    model = BACKBONES[name](with_cp=with_cp).train()
    # The gradients are there from then on.
    add_gradients(model, torch.rand(2, 3, 64, 64))
    x = torch.rand(shape)
    return timing.peak_bytes(lambda: add_gradients(model, x), CPU)
