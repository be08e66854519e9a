"""What a cell costs: parameters, multiply-adds, memory of a step, time of a forward pass."""

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import track_iter_progress
from torch import nn

from mmlska.analysis import timing
from mmlska.analysis.complexity import (
    blank_sample,
    build_for_counting,
    count_model,
    default_shape,
    first_line,
    image_channels,
    padded_shape,
    step_name,
)
from mmlska.engine.config import load_config

from .runs import fingerprint, read_json, write_json

ROUNDS = 15


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        params: Parameters.
        macs: Multiply-adds of inference for one image.
        step_bytes: Largest memory that tensors take in the forward and backward pass of a training
            batch, without weights; None where no batch can be loaded.
        time: Quartiles of the time of a forward pass, as multiples of the base's in the same round.
        failure: Why there is no figure; empty if there are.
    """

    params: int | None = None
    macs: int | None = None
    step_bytes: int | None = None
    time: list[float] | None = None
    failure: str = ''


def counted_shape(cfg: Config) -> tuple[int, int]:
    """Height and width at which a config is counted: as in papers, or its own where smaller."""
    usual = default_shape(cfg)
    for step in cfg.get('test_pipeline') or ():
        scale = step.get('scale')
        if step_name(step) == 'Resize' and isinstance(scale, (tuple, list)):
            width, height = scale
            if max(height, width) < max(usual):
                return height, width
    return usual


def count(config: Path) -> Cost:
    """Parameters and multiply-adds of a config, or why it cannot be built."""
    # A cell may fail in any part of any library; it is listed, and the others go on.
    try:
        cfg = load_config(config)
        model = build_for_counting(cfg)
        params = sum(parameter.numel() for parameter in model.parameters())
        parts = count_model(model, counted_shape(cfg))
    except Exception as error:
        return Cost(failure=first_line(error))
    return Cost(params, sum(part.macs or 0 for part in parts))


def measure_costs(configs: Mapping[str, Path], file: Path) -> dict[str, Cost]:
    """Costs of all cells, the base first; those that stand in the file are not measured again.

    Args:
        configs: Configs by the names of their cells.
        file: JSON file that keeps the costs.
    """
    known = {key: Cost(**values) for key, values in (read_json(file) or {}).items()}
    keys = {name: f'{name} {fingerprint(config)}' for name, config in configs.items()}
    missing = [name for name, key in keys.items() if key not in known or known[key].failure]
    base = next(iter(configs.values()))
    batch = training_batch(base) if missing else None
    for name in track_iter_progress(missing, file=sys.stderr) if missing else ():
        cost = count(configs[name])
        known[keys[name]] = cost if cost.failure else measure(configs[name], base, batch, cost)
        write_json(file, {key: asdict(value) for key, value in known.items()})
    return {name: known[key] for name, key in keys.items()}


def training_batch(config: Path) -> Any:
    """The first batch that a config trains on; None where its data cannot be loaded."""
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.update(num_workers=0, persistent_workers=False)
    # Any step of any pipeline may fail, and costs are no reason to end.
    try:
        return next(iter(Runner.build_dataloader(loader, seed=0)))
    except Exception as error:
        print(f'no memory of a step: no batch can be loaded ({first_line(error)})')
        return None


def measure(config: Path, base: Path, batch: Any, cost: Cost) -> Cost:
    """Add the memory of a step and the time of a forward pass beside the base's."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    cfg = load_config(config)
    try:
        model, reference = build(cfg, device), build(load_config(base), device)
        step = None if batch is None else timing.peak_bytes(training_step(model, batch), device)
        for module in (model, reference):
            # Not chained: train() of some detectors returns nothing.
            module.eval()
            module.zero_grad(set_to_none=True)
        shape = counted_shape(cfg)
        runs = {'base': forward_pass(reference, shape, device)}
        runs['cell'] = forward_pass(model, shape, device)
        samples = timing.time_rounds(runs, ROUNDS, device)
    except Exception as error:
        return replace(cost, failure=first_line(error))
    clock = timing.headline_clock(device, torch.get_num_threads())
    spread = timing.ratios(samples['cell'], samples['base'], clock)
    return replace(cost, step_bytes=step, time=list(spread))


def build(cfg: Config, device: torch.device) -> nn.Module:
    """The model of a config with random weights."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    torch.manual_seed(0)
    return revert_sync_batchnorm(MODELS.build(cfg.model)).to(device)


def training_step(model: nn.Module, batch: Any) -> Callable[[], None]:
    """Forward and backward pass of a batch."""
    model.train()

    def run() -> None:
        # Some models write into their samples.
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()

    return run


def forward_pass(
    model: nn.Module,
    shape: tuple[int, int],
    device: torch.device,
    draw: Callable[..., torch.Tensor] = torch.zeros,
) -> Callable[[], Any]:
    """Inference on one image, blank or drawn otherwise, without postprocessing."""
    height, width = padded_shape(model, shape)
    image = draw(1, image_channels(model), height, width, device=device)
    sample = blank_sample((height, width))

    def run() -> Any:
        with torch.no_grad():
            return model(image, [sample], mode='tensor')

    return run
