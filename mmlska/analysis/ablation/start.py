"""Whether cells that start from one checkpoint begin where the base is: outputs at iteration 0."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from torch import nn

from mmlska.analysis.complexity import first_line
from mmlska.checkpoint import unwrap
from mmlska.engine import give_to_first_neck
from mmlska.engine.config import load_config
from mmlska.engine.weights import load_all_weights, offer_to_backbone

from .costs import build, counted_shape, forward_pass

CPU = torch.device('cpu')


def compare_starts(configs: Mapping[str, Path], weights: str) -> dict[str, str]:
    """Compare the outputs of each cell with the base's, on one random image in evaluation mode.

    Args:
        configs: Configs by the names of their cells, the base first.
        weights: The checkpoint that all of them start from.

    Returns:
        For each cell but the base, whether its outputs agree, in words.
    """
    names = list(configs)
    wanted = outputs(configs[names[0]], weights, is_base=True)
    found = {}
    for name in names[1:]:
        # A cell may fail in any part of any library; it is listed, and the others go on.
        try:
            found[name] = agreement(outputs(configs[name], weights), wanted)
        except Exception as error:
            found[name] = f'could not be compared ({first_line(error)})'
    return found


def outputs(config: Path, weights: str, is_base: bool = False) -> list[torch.Tensor]:
    """What the model of a config gives out with the weights, on an image drawn with seed 0."""
    cfg = load_config(config)
    model = build(cfg, CPU)
    load_start(model, weights, is_base)
    # Not chained: train() of some detectors returns nothing.
    model.eval()
    torch.manual_seed(0)
    return list(tensors(forward_pass(model, counted_shape(cfg), CPU, torch.randn)()))


def load_start(model: nn.Module, weights: str, is_base: bool) -> None:
    """Load the checkpoint as a training does; in a cell, what was added keeps its start.

    Raises:
        ValueError: If weights of the base are missing.
    """
    state = dict(unwrap(CheckpointLoader.load_checkpoint(weights, map_location='cpu')))
    offer_to_backbone(model, state)
    if not is_base:
        give_to_first_neck(model, state)
        own = model.state_dict()
        state |= {key: own[key] for key in own if key not in state}
    load_all_weights(model, state, weights)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a nest of lists, tuples, dicts and data elements of mmengine."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif hasattr(value, 'to_dict'):
        yield from tensors(value.to_dict())


def agreement(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> str:
    """How outputs compare, in words."""
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return 'outputs of other shapes than the base'
    largest = max(
        (
            float((a.double() - b.double()).abs().max())
            for a, b in zip(found, wanted, strict=True)
            if a.numel()
        ),
        default=0.0,
    )
    return 'equals the base' if largest == 0 else f'differs from the base by up to {largest:.2g}'
