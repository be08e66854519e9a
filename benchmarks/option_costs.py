"""What the training options cost and save on this machine's CPU."""

import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from torch import nn

from mmlska.models import VAN, ContainerLight, GhostNetV2

from .coco_results import evaluate, make_results
from .comparison import time_ratios

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    'VAN-LSKA-tiny': lambda **kwargs: VAN('tiny', **kwargs),
    'GhostNetV2 1.0x': lambda **kwargs: GhostNetV2(1.0, **kwargs),
    'ContainerLight': lambda **kwargs: ContainerLight(**kwargs),
}
TRAINING_HEAD = (
    '| backbone | `with_cp`: peak memory | `with_cp`: time | `bf16` on the CPU: time '
    '| `fused_optimizer`: time of its step | none once more: time |\n'
    '| :-- | --: | --: | --: | --: | --: |'
)
EVALUATION_HEAD = (
    '| | pycocotools (s) | faster-coco-eval (s) | ratio | largest difference of an AP or AR |\n'
    '| :-- | --: | --: | --: | --: |'
)


def training_table(shape: tuple[int, int, int, int], rounds: int) -> str:
    """Markdown table of one training step of each backbone, as multiples of one without options.

    Args:
        shape: Shape ``(N, 3, H, W)`` of the images.
        rounds: How often each is timed.
    """
    rows = [TRAINING_HEAD]
    for name in track_iter_progress(list(BACKBONES)):
        peaks = [peak_memory(name, with_cp, shape) for with_cp in (False, True)]
        times = step_times(name, shape, rounds)
        rows.append(
            f'| {name} | {peaks[0] / 2**20:.0f} to {peaks[1] / 2**20:.0f} MiB, '
            f'×{peaks[1] / peaks[0]:.2f} | ' + ' | '.join(f'×{ratio:.2f}' for ratio in times) + ' |'
        )
    return '\n'.join(rows)


def evaluation_table(num_images: int) -> str:
    """Markdown table of one evaluation of made-up results with each library."""
    rows, dump = [EVALUATION_HEAD], make_results(num_images)
    for iou_type, label in (('bbox', 'boxes'), ('segm', 'masks')):
        slow, seconds = evaluate(*dump, iou_type, fast=False)
        fast, fewer = evaluate(*dump, iou_type, fast=True)
        difference = np.abs(fast.stats - slow.stats).max()
        rows.append(
            f'| {label} | {seconds:.1f} | {fewer:.1f} | ×{seconds / fewer:.1f} | {difference:.0e} |'
        )
    return '\n'.join(rows)


def train_step(model: nn.Module, x: torch.Tensor, bf16: bool = False) -> None:
    """One forward and one backward pass, which leave their gradients."""
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
        maps = model(x)
    sum(out.float().square().mean() for out in maps).backward()


def step_times(name: str, shape: tuple[int, int, int, int], rounds: int) -> list[float]:
    """Times of recomputation, bfloat16, the fused AdamW and of no option, in the table's order."""
    model, saving = BACKBONES[name]().train(), BACKBONES[name](with_cp=True).train()
    x = torch.rand(shape)
    passes = time_ratios(
        dict(
            none=lambda: train_step(model, x),
            with_cp=lambda: train_step(saving, x),
            bf16=lambda: train_step(model, x, bf16=True),
            again=lambda: train_step(model, x),
        ),
        rounds,
    )
    plain, fused = (torch.optim.AdamW(model.parameters(), fused=fused) for fused in (False, True))
    steps = time_ratios(dict(plain=plain.step, fused=fused.step), 3 * rounds)
    return [passes['with_cp'], passes['bf16'], steps['fused'], passes['again']]


def peak_memory(name: str, with_cp: bool, shape: tuple[int, int, int, int]) -> int:
    """Bytes that a training step needs beside the weights and their gradients; Linux only."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, name, with_cp, shape).result()


def _peak_memory(name: str, with_cp: bool, shape: tuple[int, int, int, int]) -> int:
    model = BACKBONES[name](with_cp=with_cp).train()
    train_step(model, torch.rand(1, 3, 64, 64))
    x = torch.rand(shape)
    gc.collect()
    before = _process_memory('VmRSS')
    train_step(model, x)
    return _process_memory('VmHWM') - before


def _process_memory(field: str) -> int:
    status = Path('/proc/self/status').read_text(encoding='ascii')
    return 1024 * int(re.search(rf'{field}:\s+(\d+) kB', status).group(1))
