"""The instruments on what the study trained: fields, corruptions, times."""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS
from mmengine.utils import track_iter_progress

from mmlska.analysis import receptive_field, timing
from mmlska.analysis.ablation.examples import mean_iou
from mmlska.analysis.complexity import count_macs, count_params, meta_input
from mmlska.engine.config import load_config
from mmlska.engine.inference import Predictor
from mmlska.models import VAN

from .plan import Scale

# Takes a config, the work dir of a finished training and the scale; returns named values.
Instrument = Callable[[Path, Path, Scale], Mapping[str, float]]
# Those of ImageNet-C that change a small picture without moving it: labels stay true.
CORRUPTIONS = (
    *('gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'motion_blur'),
    *('snow', 'fog', 'brightness', 'contrast', 'pixelate', 'jpeg_compression'),
)
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


def robustness(config: Path, run: Path, scale: Scale) -> dict[str, float]:
    """Figure on clean and on corrupted scenes.

    Returns:
        ``clean``: mean over scenes of the mean IoU of their classes, percent; ``corrupted``: the
        mean of the same over corruptions and severities; ``kept``: their ratio, percent.
    """
    predictor = Predictor(config, checkpoint_of(run))
    scenes = list(labelled_scenes(config, scale.corrupted_images))
    clean = score(predictor, scenes)
    corrupted = statistics.fmean(
        score(
            predictor,
            [
                (corrupt(image, name, severity, i), labels)
                for i, (image, labels) in enumerate(scenes)
            ],
        )
        for name in CORRUPTIONS
        for severity in scale.severities
    )
    return dict(clean=clean, corrupted=corrupted, kept=100 * corrupted / clean)


def labelled_scenes(config: Path, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (BGR) and label maps of the validation set."""
    dataset = DATASETS.build(load_config(config).val_dataloader.dataset)
    load = Compose(dataset.pipeline.transforms[:-1])
    scenes = [load(dataset.get_data_info(i)) for i in range(min(number, len(dataset)))]
    return [(scene['img'], scene['gt_seg_map']) for scene in scenes]


def corrupt(image: np.ndarray, name: str, severity: int, index: int) -> np.ndarray:
    """Corrupt a BGR image, each image in its own way, the same in every run."""
    import imagecorruptions

    np.random.seed(index)
    changed = imagecorruptions.corrupt(image[..., ::-1], corruption_name=name, severity=severity)
    return np.ascontiguousarray(changed[..., ::-1])


def score(predictor: Predictor, scenes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean over scenes of the mean IoU of the classes that occur, percent."""
    scores = []
    for image, labels in scenes:
        data = predictor.prepare(
            dict(img=image, img_path='', ori_shape=image.shape[:2], img_shape=image.shape[:2])
        )
        with torch.no_grad():
            found = predictor.model.test_step(pseudo_collate([data]))[0].pred_sem_seg.data
        scores.append(mean_iou(labels.ravel(), found.cpu().numpy().ravel()))
    return 100 * statistics.fmean(scores)


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
    runs: Mapping[str, Mapping[int, Path]],
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
            values = kept.get(f'{cell} {seed}', compute)
        for name, value in values.items():
            figures.setdefault(name, {}).setdefault(cell, {})[seed] = value
    return figures
