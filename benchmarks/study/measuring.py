"""The instruments on what the study trained: fields, corruptions, shape; and times."""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.utils import track_iter_progress

from mmlska.analysis import (
    corrupted_evaluation,
    receptive_field,
    shape_texture,
    stage_features,
    timing,
)
from mmlska.analysis.complexity import count_macs, count_params, meta_input
from mmlska.datasets import cue_conflict
from mmlska.engine.config import load_config
from mmlska.models import VAN

from .plan import IMAGE_SIZE, METRIC, Scale

# Takes a config, the work dir of a finished training and the scale; returns named values.
Instrument = Callable[[Path, Path, Scale], Mapping[str, float]]
# Work dirs of finished trainings by cell and seed.
Runs = Mapping[str, Mapping[int, Path]]
# The map of stride 4, the second, as in the first stage of VAN.
FIELD_STAGE = 1
TIMED_SIDE = 224


class Kept:
    """Values by key in a JSON file; what is there is not computed again.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of a key, computed and written down the first time."""
        if key not in self.values:
            self.values[key] = compute()
            written = self.path.with_suffix('.part')
            written.write_text(json.dumps(self.values, indent=1) + '\n')
            os.replace(written, self.path)
        return self.values[key]


def checkpoint_of(run: Path) -> str:
    """The last checkpoint of a work dir."""
    return (run / 'last_checkpoint').read_text().strip()


def field_sides(config: Path, run: Path, scale: Scale) -> dict[str, int]:
    """Sides in pixels of the squares that hold 50 and 99 % of the effective field."""
    cfg = load_config(config)
    subject = receptive_field.Subject(run.parent.name, cfg, checkpoint_of(run))
    settings = receptive_field.Settings(
        number=scale.field_images, size=scale.field_size, stage=FIELD_STAGE
    )
    field = receptive_field.measure_field(subject, settings, 'cpu')
    return {f'{reach.share:.0%}': reach.side for reach in field.reaches((0.5, 0.99))}


def robustness(
    configs: Mapping[str, Path], runs: Runs, folder: Path, scale: Scale, jobs: int
) -> dict[str, dict[str, dict[int, float]]]:
    """Figures on clean and on corrupted scenes.

    Args:
        configs: Configs by cell.
        runs: Work dirs of finished trainings by cell and seed.
        folder: Where finished evaluations are kept.
        scale: At which scale.
        jobs: Evaluations at once.

    Returns:
        By name, cell and seed, percent: ``clean``; ``corrupted``, the mean over corruptions and
        severities; ``kept``, what is left of the clean one.
    """
    keys = {f'{cell} {seed}': (cell, seed) for cell in runs for seed in runs[cell]}
    subjects = [
        corrupted_evaluation.Subject(name, str(configs[cell]), checkpoint_of(runs[cell][seed]))
        for name, (cell, seed) in keys.items()
    ]
    cells = corrupted_evaluation.cells_of(scale.corruptions, scale.severities)
    settings = corrupted_evaluation.Settings(images=scale.corrupted_images)
    found = corrupted_evaluation.evaluate_cells(subjects, cells, folder, settings, jobs)
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for name, (cell, seed) in keys.items():
        clean = found[name][corrupted_evaluation.CLEAN][METRIC]
        corrupted = statistics.fmean(found[name][c][METRIC] for c in cells[1:])
        values = dict(clean=clean, corrupted=corrupted, kept=100 * corrupted / clean)
        for key, value in values.items():
            figures.setdefault(key, {}).setdefault(cell, {})[seed] = value
    return figures


def factor_shares(config: Path, run: Path, scale: Scale) -> dict[str, float]:
    """Dimensions of the last stage that hold shape and texture, percent."""
    folder = run.parents[2]
    pictures = cue_conflict.find_pictures(
        cue_conflict.make_cue_conflict(
            folder / 'cue_conflict', 'scenes', scale.cues, scale.cues, IMAGE_SIZE
        )
    )
    pairs = cue_conflict.pair_pictures(pictures, scale.pairs)
    features = stage_features.kept_features(
        load_config(config),
        checkpoint_of(run),
        [picture.path for picture in pictures],
        folder / 'features',
        IMAGE_SIZE,
    )
    last = shape_texture.stage_dimensions(features, pairs)[-1]
    return {factor: last.share(factor) for factor in ('shape', 'texture')}


def times(attentions: Sequence[tuple[str, int]], rounds: int) -> dict[str, Any]:
    """Cost of a VAN-tiny with each attention, on one image of 224 x 224, in turns.

    Returns:
        For each attention, as ``'LSKA 7'``: parameters, multiply-adds, and the quartiles of its
        time as multiples of the first one's in the same round.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    image = torch.zeros(1, 3, TIMED_SIDE, TIMED_SIDE, device=device)
    models, costs = {}, {}
    for kind, size in attentions:
        attention = dict(type=kind, kernel_size=size)
        model = VAN('tiny', attention=attention).eval()
        name = f'{kind} {size}'
        models[name] = forward(model.to(device), image)
        counted = VAN('tiny', attention=attention).to('meta').eval()
        macs, _ = count_macs(counted, meta_input(1, 3, TIMED_SIDE, TIMED_SIDE))
        costs[name] = dict(params=count_params(counted), macs=macs)
    samples = timing.time_rounds(models, rounds, device)
    clock = timing.headline_clock(device, torch.get_num_threads())
    reference = next(iter(samples.values()))
    return {
        name: costs[name] | dict(time=list(timing.ratios(taken, reference, clock)))
        for name, taken in samples.items()
    }


def forward(model: torch.nn.Module, image: torch.Tensor) -> Callable[[], Any]:
    """A forward pass without gradients."""

    def run() -> Any:
        with torch.no_grad():
            return model(image)

    return run


def by_cell(
    configs: Mapping[str, Path],
    runs: Runs,
    kept: Kept,
    instrument: Instrument,
    scale: Scale,
) -> dict[str, dict[str, dict[int, float]]]:
    """Measure every finished run.

    Args:
        configs: Configs by cell.
        runs: Work dirs of finished trainings by cell and seed.
        kept: Where finished values are.
        instrument: What measures one.
        scale: At which scale.

    Returns:
        For each name its values by cell and seed.
    """
    figures: dict[str, dict[str, dict[int, float]]] = {}
    finished = [(cell, seed, run) for cell in runs for seed, run in runs[cell].items()]
    for cell, seed, run in track_iter_progress(finished, file=sys.stderr):
        # Libraries print what they do.
        with contextlib.redirect_stdout(sys.stderr):
            compute = partial(instrument, configs[cell], run, scale)
            # A run that was removed and trained again is measured again.
            written = os.stat(checkpoint_of(run)).st_mtime_ns
            values = kept.get(f'{cell} {seed} {written}', compute)
        for name, value in values.items():
            figures.setdefault(name, {}).setdefault(cell, {})[seed] = value
    return figures
