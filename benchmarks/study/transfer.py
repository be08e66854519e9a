"""Whether what a segmentor has learned helps a detector: its backbone against a random start."""

from pathlib import Path

from mmlska.analysis.ablation import Estimate, Launch, paired_difference
from mmlska.analysis.ablation.cells import Cell
from mmlska.analysis.ablation.config_text import config_text
from mmlska.analysis.ablation.runs import RESULT, Run, check_unchanged, read_json, train_all
from mmlska.engine.config import find_config

from .measuring import checkpoint_of
from .plan import Scale

DETECTOR = 'retinanet_van-lska-pico_fpn_demo_digits-64x64'
METRIC = 'coco/bbox_mAP'
RANDOM, PRETRAINED = 'random', 'pretrained'


def transfer(scale: Scale, data: Path, segmentor: Path, work_dir: Path, launch: Launch) -> dict:
    """Train detectors from both starts with every seed.

    Args:
        scale: How long, and with how many seeds.
        data: The scenes.
        segmentor: Work dir of the segmentor whose backbone is taken.
        work_dir: Where configs and runs go.
        launch: How trainings are started.

    Returns:
        Average precision of boxes in percent, by start and seed.
    """
    folder = work_dir / 'configs'
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for name in (RANDOM, PRETRAINED):
        path = folder / f'{name}.py'
        path.write_text(start_text(name, scale, data, segmentor), encoding='utf-8')
        cell = Cell(name, name, path.read_text(encoding='utf-8'))
        runs += [
            Run(cell, seed, path, work_dir / 'runs' / name / f'seed{seed}')
            for seed in range(scale.seeds)
        ]
    check_unchanged(runs)
    train_all(runs, launch)
    figures: dict[str, dict[int, float]] = {RANDOM: {}, PRETRAINED: {}}
    for run in runs:
        if result := read_json(run.folder / RESULT):
            figures[run.cell.name][run.seed] = 100 * result['figures'][METRIC]
    return figures


def start_text(name: str, scale: Scale, data: Path, segmentor: Path) -> str:
    """Config of the detector from one of the starts; it trains as long as the segmentors."""
    length, warm_up = scale.iterations, min(50, scale.iterations // 2)
    dataset = dict(dataset=dict(data_root=f'{data.resolve()}/'))
    evaluator = dict(ann_file=f'{data.resolve()}/annotations/instances_val.json')
    settings = dict(
        train_cfg=dict(max_iters=length, val_interval=length),
        default_hooks=dict(checkpoint=dict(interval=length)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
            dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=warm_up, end=length),
        ],
        train_dataloader=dataset,
        val_dataloader=dataset,
        test_dataloader=dataset,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
    )
    if name == PRETRAINED:
        start = dict(
            type='Pretrained',
            checkpoint=str(Path(checkpoint_of(segmentor)).resolve()),
            prefix='backbone.',
        )
        settings['model'] = dict(backbone=dict(init_cfg=start))
    return config_text(f'Detector, {name} start.', str(find_config(DETECTOR)), settings)


def gain(figures: dict) -> Estimate | None:
    """What the pretrained start gains over the random one, points of AP, paired over seeds."""
    return paired_difference(figures.get(PRETRAINED, {}), figures.get(RANDOM, {}))
