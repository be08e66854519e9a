"""Measuring a warm start on images, and refining it on them.

Every block is looked at by itself, fed with what the source feeds to its own.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from mmlska.models import VAN

from .gate_fitting import PointwiseFit, fit_cascade, run

# A few small maps do not determine the taps of a large kernel, and still less `conv1`, which has as
# many unknowns an output as there are channels. How firmly they are held near their present values,
# the images that are held out decide.
TAP_RIDGES = (1e-6, 1e-3, 1e-1)
POINTWISE_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
# Of so many images one is held out.
HELD_OUT = 4

Maps = Sequence[torch.Tensor]


class Refinement(NamedTuple):
    """Relative errors of a block's output on all images, and on those that are held out."""

    block: str
    before: float
    after: float
    held_out_before: float
    held_out_after: float


@torch.no_grad()
def block_errors(source: VAN, target: VAN, images: Maps) -> dict[str, float]:
    """How far the output of each block is from that of the source's block for the same input.

    Args:
        source (VAN): Model in evaluation mode.
        target (VAN): Model of the same architecture with another attention, in evaluation mode.
        images (Sequence[Tensor]): Batches ``(N, 3, H, W)``.

    Returns:
        dict[str, float]: For each block the norm of the difference, relative to that of the output
        of the source.
    """
    return {
        name: _relative_error(target.get_submodule(name), inputs, outputs)
        for name, inputs, outputs in walk_blocks(source, images)
    }


@torch.no_grad()
def output_error(source: VAN, target: VAN, images: Maps) -> float:
    """How far the last map of a model is from the source's: the errors of all blocks together."""
    wanted = [source(batch)[-1] for batch in images]
    return _relative_error(lambda batch: target(batch)[-1], images, wanted)


@torch.no_grad()
def calibrate(source: VAN, target: VAN, images: Maps, sweeps: int = 3) -> Iterator[Refinement]:
    """Fit the attention of each block to that of the source's, in place, block after block.

    Every fourth image is held out of the fits. What would raise the error of the block's output, on
    all images or on those, is taken back, so that neither of them ever rises.

    Args:
        source (VAN): Model in evaluation mode.
        target (VAN): Model of the same architecture with LKA or LSKA of any size, in evaluation
            mode.
        images (Sequence[Tensor]): Batches ``(N, 3, H, W)``. With fewer than four images none is
            held out.
        sweeps (int): Most times that all convolutions of a block are fitted. Defaults to 3.

    Yields:
        Refinement: Errors of a block before and after.
    """
    fitted, held_out = hold_out(images)
    for name, inputs, outputs in walk_blocks(source, [*fitted, *held_out]):
        block, old = target.get_submodule(name), source.get_submodule(name)
        data = _BlockData(inputs, outputs, len(fitted))
        before = data.errors(block)
        # A firmer hold only where the looser ones do not help.
        any(_sweep(block, old, data, ridge, sweeps) for ridge in TAP_RIDGES)
        after = data.errors(block)
        yield Refinement(name, before.all, after.all, before.held_out, after.held_out)


def hold_out(images: Maps) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Batches to fit to, and batches of every fourth image."""
    every, size = torch.cat(list(images)), len(images[0])
    held_out = torch.arange(len(every)) % HELD_OUT == HELD_OUT - 1
    return [
        list(part.split(size)) if len(part) else [] for part in (every[~held_out], every[held_out])
    ]


@torch.no_grad()
def walk_blocks(model: VAN, images: Maps) -> Iterator[tuple[str, list, list]]:
    """Name, inputs and outputs of each block, in the order in which the images meet them."""
    maps = list(images)
    for i in range(model.num_stages):
        patch_embed, blocks, norm, after_stage = model.stage(i)
        maps = [patch_embed(x) for x in maps]
        for j, block in enumerate(blocks):
            outputs = [block(x) for x in maps]
            yield f'blocks{i + 1}.{j}', maps, outputs
            maps = outputs
        maps = [after_stage(norm(x)) for x in maps]


class _Errors(NamedTuple):
    all: float
    held_out: float

    def is_below(self, other: '_Errors') -> bool:
        return self.all < other.all and self.held_out <= other.held_out


class _BlockData(NamedTuple):
    """What a block of the source takes and gives; the first batches are there to be fitted to."""

    inputs: Maps
    outputs: Maps
    fitted: int

    def errors(self, block: Callable) -> _Errors:
        pairs = zip(self.inputs, self.outputs, strict=True)
        losses = [(_energy(block(x) - y), _energy(y)) for x, y in pairs]
        parts = losses, losses[self.fitted :] or losses
        return _Errors(*(_ratio(part) for part in parts))


def _relative_error(block: Callable, inputs: Maps, outputs: Maps) -> float:
    return _BlockData(inputs, outputs, 0).errors(block).all


def _ratio(losses: Sequence[tuple[float, float]]) -> float:
    lost, total = map(sum, zip(*losses, strict=True))
    return math.sqrt(lost / total) if total else float(lost > 0)


def _energy(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


def _sweep(block: nn.Module, old: nn.Module, data: _BlockData, ridge: float, sweeps: int) -> bool:
    """Refine a block as often as it helps, and say whether it has helped at all."""
    for done in range(sweeps):
        if not _refine(block, old, data, ridge):
            return done > 0
    return sweeps > 0


def _refine(block: nn.Module, old: nn.Module, data: _BlockData, ridge: float) -> bool:
    """Fit all convolutions of a block's attention once, and say whether that has helped."""
    gate = block.attn.spatial_gating_unit
    best, best_errors = copy.deepcopy(gate.state_dict()), data.errors(block)
    helped = False
    for _ in _fits(gate, old, data.inputs[: data.fitted], ridge):
        errors = data.errors(block)
        if errors.is_below(best_errors):
            best, best_errors, helped = copy.deepcopy(gate.state_dict()), errors, True
    gate.load_state_dict(best)
    return helped


def _fits(gate: nn.Module, old: nn.Module, inputs: Maps, ridge: float) -> Iterator[None]:
    """Give the gate one fit after the other: of the cascade, then of ``conv1`` for every ridge."""
    attention = old.attn
    *cascade, conv1 = gate.children()
    *wanted_cascade, wanted_conv1 = attention.spatial_gating_unit.children()
    maps = [attention.activation(attention.proj_1(old.norm1(x))) for x in inputs]
    wanted = [run(wanted_cascade, x) for x in maps]
    fit_cascade(cascade, maps, wanted, ridge)
    yield
    answers = [run(cascade, x) for x in maps]
    fit = PointwiseFit(conv1, answers, [wanted_conv1(x) for x in wanted])
    for pointwise_ridge in POINTWISE_RIDGES:
        fit.solve(pointwise_ridge)
        yield
