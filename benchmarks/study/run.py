"""The study from its trainings to its page."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from mmlska.analysis.ablation import Launch, run_ablation
from mmlska.datasets import make_digit_scenes

from . import measuring
from .claims import Claim, Figures
from .judging import Findings, judge
from .page import write_page
from .plan import BASE_ATTENTION, IMAGE_SIZE, METRIC, SCALES, Scale, attentions, study_spec
from .transfer import transfer

TRAIN = Path(__file__).resolve().parents[2] / 'tools' / 'train.py'


def run_study(name: str, work_dir: Path, page: Path, jobs: int) -> list[Claim]:
    """Train, measure and judge; what is done is kept.

    Args:
        name: Name of the scale.
        work_dir: Where data, configs, runs and measurements go.
        page: The page to write.
        jobs: Trainings at once.

    Returns:
        The claims with their verdicts.
    """
    torch.set_num_threads(1)
    scale = SCALES[name]
    data = work_dir / 'data'
    print(f'[1/4] {scale.num_train} + {scale.num_val} scenes in {data}', flush=True)
    make_digit_scenes(data, scale.num_train, scale.num_val, IMAGE_SIZE)
    spec = study_spec(scale, data, work_dir)
    print(f'[2/4] {len(attentions(scale)) + 1} cells, {scale.seeds} seeds each', flush=True)
    launch = Launch(TRAIN, jobs=jobs)
    rows = run_ablation(spec, launch)
    print('[3/4] Receptive fields, corrupted scenes, times, transfer', flush=True)
    accuracy = {row.name: row.figures.get(METRIC, {}) for row in rows}
    findings = measure(scale, work_dir, accuracy, jobs)
    segmentor = work_dir / 'runs' / 'base' / 'seed0'
    findings.transfer = transfer(scale, data, segmentor, work_dir / 'transfer', launch)
    claims = judge(findings)
    print('[4/4] Judging', flush=True)
    table = (work_dir / 'report.md').read_text(encoding='utf-8')
    write_page(page, findings, claims, table, name)
    record = dict(findings=asdict(findings), claims=[asdict(claim) for claim in claims])
    (work_dir / 'study.json').write_text(json.dumps(record, indent=1) + '\n')
    return claims


def measure(
    scale: Scale, work_dir: Path, accuracy: Mapping[str, Mapping[int, float]], jobs: int
) -> Findings:
    """Put the instruments on every finished training."""
    configs = {cell: work_dir / 'configs' / f'{cell}.py' for cell in accuracy}
    runs = {
        cell: {seed: work_dir / 'runs' / cell / f'seed{seed}' for seed in seeds}
        for cell, seeds in accuracy.items()
    }

    def figures(name: str, instrument: measuring.Instrument) -> dict[str, Figures]:
        kept = measuring.Kept(work_dir / f'{name}.json')
        return measuring.by_cell(configs, runs, kept, instrument, scale)

    times = measuring.Kept(work_dir / 'times.json')
    timed = [(kind, size) for kind, size in (BASE_ATTENTION, *attentions(scale)) if size]
    return Findings(
        scale=scale,
        accuracy=accuracy,
        fields=figures('fields', measuring.field_sides),
        robustness=measuring.robustness(configs, runs, work_dir / 'robustness', scale, jobs),
        shape=figures('shape', measuring.factor_shares),
        times=times.get('VAN-tiny', lambda: measuring.times(timed, scale.rounds)),
    )
