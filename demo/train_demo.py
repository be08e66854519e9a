#!/usr/bin/env python
"""Train a small VAN-LSKA from scratch, evaluate it, and draw what it finds beside the truth.

The data set is made on the spot: handwritten digits on photographs. Nothing is downloaded. The
training is the job that tools/train.py runs for any config.
"""

import argparse
import importlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from digit_pictures import draw_predictions
from mmengine.config import Config
from mmengine.registry import MODELS
from next_commands import REPOSITORY, next_commands, script
from training_watch import Watch, clock, output_to

from mmlska.cli import report_errors
from mmlska.datasets import make_digit_scenes
from mmlska.engine import StartEvaluationHook
from mmlska.engine.config import load_config
from mmlska.engine.launch import build_runner, prepare_training

DATA_ROOT = Path('data/digit_scenes')
CONFIGS = {
    'detection': 'mask-rcnn_van-lska-nano_fpn_demo_digits.py',
    'retinanet': 'retinanet_van-lska-nano_fpn_demo_digits.py',
    'segmentation': 'fpn_van-lska-nano_demo_digits-128x128.py',
}
# Figures that are shown: their names in the log, and the logged values that stand for 100 percent.
BOX_METRICS = {'box AP50': ('coco/bbox_mAP_50', 1.0), 'box AP': ('coco/bbox_mAP', 1.0)}
MASK_METRICS = {'mask AP50': ('coco/segm_mAP_50', 1.0), 'mask AP': ('coco/segm_mAP', 1.0)}
METRICS = {
    'detection': BOX_METRICS | MASK_METRICS,
    'retinanet': BOX_METRICS,
    'segmentation': {'mIoU': ('mIoU', 100.0), 'pixel accuracy': ('aAcc', 100.0)},
}
# Small models of the other backbones, at about the size of the one that the configs name.
SMALL = dict(embed_dims=[16, 32, 64, 128], depths=[2] * 4, ffn_ratios=[4] * 4, num_heads=8)
BACKBONES = {
    'van-lska': None,
    'ghostnetv2': dict(type='mmlska.GhostNetV2', width=0.5),
    'container-light': dict(type='mmlska.ContainerLight', arch=SMALL),
}
# Layers on every level of the pyramid, in addition to the attention of the backbone.
ATTENTIONS = {
    'none': None,
    'eca': dict(type='ECA'),
    'context-aggregation': dict(type='ContextAggregation'),
}


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--task',
        choices=list(CONFIGS),
        default='detection',
        help='Mask R-CNN (detection, the default), RetinaNet or Semantic FPN',
    )
    add(
        '--backbone',
        choices=list(BACKBONES),
        default='van-lska',
        help='backbone to train instead of a small VAN-LSKA; the schedule is tuned for that one',
    )
    add(
        '--attention',
        choices=list(ATTENTIONS),
        default='none',
        help='attention layer to add on every level of the pyramid (default: none)',
    )
    add('--seed', type=int, default=0, help='seed of the training (default: 0)')
    add(
        '--work-dir',
        type=Path,
        help='where logs, checkpoints and the picture go (default: work_dirs/demo_<task>, and the '
        'backbone and attention where they are chosen)',
    )
    add(
        '--data-root',
        type=Path,
        default=DATA_ROOT,
        help=f'where the data set is made, or found from the last time (default: {DATA_ROOT})',
    )
    add('--num-train', type=int, default=1200, help='training scenes (default: 1200)')
    add('--num-val', type=int, default=100, help='validation scenes (default: 100)')
    add('--max-iters', type=int, help='iterations to train (default: those of the config)')
    args = parser.parse_args(arguments)
    if args.max_iters is not None and args.max_iters < 1:
        parser.error(f'--max-iters must be at least 1, got {args.max_iters}')
    args.work_dir = args.work_dir or Path('work_dirs') / '_'.join(['demo', *variant_of(args)])
    return args


def variant_of(args: argparse.Namespace) -> list[str]:
    """The task, and the backbone and attention where they are not the config's own."""
    added = [args.backbone] if args.backbone != 'van-lska' else []
    return [args.task, *added, *([args.attention] if args.attention != 'none' else [])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data, train, evaluate, draw."""
    args = parse_args(arguments)
    # Networks of this size gain nothing from a second thread; on a busy machine the threads wait
    # for each other.
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(1)
    with report_errors():
        try:
            run_demo(args)
        except KeyboardInterrupt:
            raise SystemExit('\ninterrupted') from None


def run_demo(args: argparse.Namespace) -> None:
    """Run the demo that the command line asks for."""
    start = time.monotonic()
    if args.task != 'segmentation':
        check_operators()
    args.work_dir.mkdir(parents=True, exist_ok=True)

    say(f'[1/3] Data: {args.num_train} + {args.num_val} scenes in {args.data_root}')
    make_digit_scenes(args.data_root, num_train=args.num_train, num_val=args.num_val)

    say('[2/3] Training; the untrained model is evaluated before, to compare')
    config, watch = write_config(args), Watch()
    train(config, args.work_dir / 'train', watch)
    checkpoint = Path((args.work_dir / 'train' / 'last_checkpoint').read_text(encoding='locale'))

    picture = args.work_dir / 'predictions.png'
    say(f'[3/3] Drawing {picture}')
    with output_to(args.work_dir / 'drawing.log'):
        draw_predictions(config, checkpoint, picture)

    say(f'\n{args.num_val} validation scenes  untrained  trained')
    for name, (key, unit) in METRICS[args.task].items():
        # mmdet logs no figures for a detector that finds nothing at all.
        before, after = (watch.figures[i].get(key, 0.0) / unit for i in (0, -1))
        say(f'{name:>22}{before:11.3f}{after:9.3f}')
    say(f'\npicture     {picture}\ncheckpoint  {checkpoint}')
    say(f'It took {clock(time.monotonic() - start)}.')
    say('\nThree commands to go on with')
    images = args.data_root / 'images' / 'val'
    for purpose, command in next_commands(config, checkpoint, images, args.work_dir).items():
        say(f'  {purpose}:\n    {shlex.join(command)}')


def check_operators() -> None:
    """Say in time that a detector cannot run.

    Raises:
        ValueError: If mmcv lacks its compiled operators.
    """
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        raise ValueError(
            f"detectors need mmcv's compiled operators ({error}); a segmentor needs none: "
            '--task segmentation, or make demo TASK=segmentation'
        ) from error


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def write_config(args: argparse.Namespace) -> Path:
    """Write the config of the task with all that the command line changes in it."""
    config = load_config(REPOSITORY / 'configs' / 'demo' / CONFIGS[args.task])
    config.randomness = dict(seed=args.seed)
    if args.max_iters:
        set_length(config, args.max_iters)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.data_root = f'{args.data_root}/'
    for evaluator in (config.val_evaluator, config.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = f'{args.data_root}/annotations/instances_val.json'
    model = config.model
    if backbone := BACKBONES[args.backbone]:
        model.backbone = backbone
        with output_to(os.devnull):
            model.neck.in_channels = list(MODELS.build(backbone).out_channels)
    if attention := ATTENTIONS[args.attention]:
        levels = dict(
            type='mmlska.PyramidAttention',
            attention=attention,
            in_channels=model.neck.out_channels,
            num_outs=model.neck.num_outs,
        )
        model.neck = [model.neck, levels]
    path = args.work_dir / f'{"_".join(variant_of(args))}.py'
    config.dump(path)
    return path


def set_length(config: Config, max_iters: int) -> None:
    """Make a training longer or shorter, the decay of its rate included."""
    config.train_cfg.update(max_iters=max_iters, val_interval=max_iters)
    config.default_hooks.checkpoint.interval = max_iters
    if max_iters > config.param_scheduler[1].begin:
        config.param_scheduler[1].end = max_iters


def train(config: Path, work_dir: Path, watch: Watch) -> None:
    """Train as tools/train.py does, and show how it goes."""
    command = [*script('tools/train.py'), str(config), '--work-dir', str(work_dir)]
    log = work_dir.with_suffix('.log')
    say(f'      {shlex.join(command)}')
    say(f'      The log goes to {log}')
    with output_to(log):
        cfg = prepare_training(config, work_dir=str(work_dir))
        # mmengine hands out visualizers by name, and with it the folder of the first one.
        cfg.visualizer.name = str(work_dir)
        runner = build_runner(cfg)
        runner.register_hook(StartEvaluationHook())
        runner.register_hook(watch)
        runner.train()


if __name__ == '__main__':
    main()
