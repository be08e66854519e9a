#!/usr/bin/env python
"""Train a small VAN-LSKA from scratch, evaluate it, and draw what it finds beside the truth.

The data set is made on the spot: handwritten digits on photographs. Nothing is downloaded. The
training is the job that tools/train.py runs for any config.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

from mmlska.cli import report_errors
from mmlska.datasets import DIGITS, make_digit_scenes

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_ROOT = Path('data/digit_scenes')
MAX_DRAWN = 8
MIN_DRAWN_SCORE = 0.5
# Segments of fewer pixels get no label in the picture.
MIN_LABELLED_AREA = 40
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """A config and those of its logged figures that are shown.

    Args:
        config (str): File in ``configs/demo``.
        metrics (dict[str, tuple[str, float]]): By the name shown, the name in the log and the
            logged value that stands for 100 percent.
    """

    config: str
    metrics: dict[str, tuple[str, float]]


BOX_METRICS = {'box AP50': ('coco/bbox_mAP_50', 1.0), 'box AP': ('coco/bbox_mAP', 1.0)}
MASK_METRICS = {'mask AP50': ('coco/segm_mAP_50', 1.0), 'mask AP': ('coco/segm_mAP', 1.0)}
TASKS = {
    'detection': Task('mask-rcnn_van-lska-nano_fpn_demo_digits.py', BOX_METRICS | MASK_METRICS),
    'retinanet': Task('retinanet_van-lska-nano_fpn_demo_digits.py', BOX_METRICS),
    'segmentation': Task(
        'fpn_van-lska-nano_demo_digits-128x128.py',
        {'mIoU': ('mIoU', 100.0), 'pixel accuracy': ('aAcc', 100.0)},
    ),
}


# Small models of the other backbones, at about the size of the one that the configs name.
BACKBONES = {
    'van-lska': None,
    'ghostnetv2': dict(type='mmlska.GhostNetV2', width=0.5),
    'container-light': dict(
        type='mmlska.ContainerLight',
        arch=dict(
            embed_dims=[16, 32, 64, 128],
            depths=[2, 2, 2, 2],
            ffn_ratios=[4, 4, 4, 4],
            num_heads=8,
        ),
    ),
}
# Layers on every level of the pyramid, in addition to the attention of the backbone.
ATTENTIONS = {
    'none': None,
    'eca': dict(type='ECA'),
    'context-aggregation': dict(type='ContextAggregation'),
}


class ToolError(ValueError):
    """A tool that ended with an error; the message holds the end of its log."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--task',
        choices=list(TASKS),
        default='detection',
        help='Mask R-CNN (detection, the default), RetinaNet or Semantic FPN',
    )
    parser.add_argument(
        '--backbone',
        choices=list(BACKBONES),
        default='van-lska',
        help='backbone to train instead of a small VAN-LSKA; the schedule is tuned for that one',
    )
    parser.add_argument(
        '--attention',
        choices=list(ATTENTIONS),
        default='none',
        help='attention layer to add on every level of the pyramid (default: none)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the training (default: 0)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='where logs, checkpoints and the picture go (default: work_dirs/demo_<task>, and the '
        'backbone and attention where they are chosen)',
    )
    parser.add_argument(
        '--data-root',
        type=Path,
        default=DATA_ROOT,
        help=f'where the data set is made, or found from the last time (default: {DATA_ROOT})',
    )
    parser.add_argument(
        '--num-train', type=int, default=1200, help='training scenes (default: 1200)'
    )
    parser.add_argument('--num-val', type=int, default=100, help='validation scenes (default: 100)')
    parser.add_argument(
        '--max-iters', type=int, help='iterations to train (default: those of the config)'
    )
    args = parser.parse_args()
    if args.max_iters is not None and args.max_iters < 1:
        parser.error(f'--max-iters must be at least 1, got {args.max_iters}')
    if ',' in str(args.data_root):
        parser.error(f'--data-root must not contain a comma, got {str(args.data_root)!r}')
    args.work_dir = args.work_dir or Path('work_dirs') / '_'.join(['demo', *variant_of(args)])
    return args


def variant_of(args: argparse.Namespace) -> list[str]:
    """The task, and the backbone and attention where they are not the config's own."""
    added = [args.backbone] if args.backbone != 'van-lska' else []
    return [args.task, *added, *([args.attention] if args.attention != 'none' else [])]


def main() -> None:
    """Make the data, train, evaluate, draw."""
    args = parse_args()
    # Without this a signal would end this process alone, and the training would go on.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with report_errors():
        try:
            run_demo(args)
        except KeyboardInterrupt:
            raise SystemExit('\ninterrupted') from None


def run_demo(args: argparse.Namespace) -> None:
    """Run the demo that the command line asks for."""
    start = time.monotonic()
    task = TASKS[args.task]
    args.work_dir.mkdir(parents=True, exist_ok=True)

    say(f'[1/4] Data: {args.num_train} + {args.num_val} scenes in {args.data_root}')
    make_digit_scenes(args.data_root, num_train=args.num_train, num_val=args.num_val)

    config, options = load_demo_config(args)
    say('[2/4] Training')
    trained, checkpoint = train(config, options, args.work_dir / 'train')

    say('[3/4] Evaluating an untrained model, to compare')
    untrained = evaluate_untrained(config, options, args.work_dir / 'untrained', args.seed)

    picture = args.work_dir / 'predictions.png'
    say(f'[4/4] Drawing {picture}')
    with output_to(args.work_dir / 'drawing.log'):
        draw_predictions(config, options, checkpoint, picture)

    say(f'\n{args.num_val} validation scenes  untrained  trained')
    for name, (key, unit) in task.metrics.items():
        # mmdet logs no figures for a detector that finds nothing at all.
        before, after = (figures.get(key, 0.0) / unit for figures in (untrained, trained))
        say(f'{name:>22}{before:11.3f}{after:9.3f}')
    say(f'\npicture     {picture}\ncheckpoint  {checkpoint}')
    say(f'It took {clock(time.monotonic() - start)}.')


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def clock(seconds: float) -> str:
    """Write a duration as minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def load_demo_config(args: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """Read the config of the task.

    Returns:
        tuple[Config, dict[str, Any]]: The config as it is trained, and the overrides in it.
    """
    from mmlska.engine.config import load_config

    path = REPOSITORY / 'configs' / 'demo' / TASKS[args.task].config
    if len(variant_of(args)) > 1:
        path = write_variant(load_config(path), args)
    config = load_config(path)
    options = {'randomness.seed': args.seed}
    if args.max_iters:
        options |= length_options(config, args.max_iters)
    if args.data_root != DATA_ROOT:
        options |= data_options(config, args.data_root)
    return load_config(path, options), options


def length_options(config: Config, max_iters: int) -> dict[str, int]:
    """Overrides that make a training longer or shorter, the decay of its rate included."""
    options = {'train_cfg.max_iters': max_iters, 'train_cfg.val_interval': max_iters}
    options['default_hooks.checkpoint.interval'] = max_iters
    if max_iters > config.param_scheduler[1].begin:
        options['param_scheduler.1.end'] = max_iters
    return options


def write_variant(config: Config, args: argparse.Namespace) -> Path:
    """Write the config with another backbone, or with attention on its pyramid."""
    from mmlska.registry import MODELS

    model = config.model
    if BACKBONES[args.backbone]:
        model.backbone = BACKBONES[args.backbone]
        with output_to(os.devnull):
            model.neck.in_channels = list(MODELS.build(model.backbone).out_channels)
    if ATTENTIONS[args.attention]:
        levels = dict(
            type='mmlska.PyramidAttention',
            attention=ATTENTIONS[args.attention],
            in_channels=model.neck.out_channels,
            num_outs=model.neck.num_outs,
        )
        model.neck = [model.neck, levels]
    path = args.work_dir / f'{"_".join(variant_of(args))}.py'
    config.dump(path)
    return path


def data_options(config: Config, root: Path) -> dict[str, str]:
    """Overrides that make a config read the data set from another folder."""
    options = {
        f'{split}_dataloader.dataset.data_root': f'{root}/' for split in ('train', 'val', 'test')
    }
    for evaluator in ('val_evaluator', 'test_evaluator'):
        if 'ann_file' in config[evaluator]:
            options[f'{evaluator}.ann_file'] = f'{root}/annotations/instances_val.json'
    return options


def train(config: Config, options: dict[str, Any], work_dir: Path) -> tuple[dict, Path]:
    """Train with tools/train.py and show how it goes.

    Returns:
        tuple[dict, Path]: The figures of the last validation, and the checkpoint.
    """
    command = tool_command('train.py', config, options, work_dir)
    say(f'      {shlex.join(command)}')
    say(f'      The log goes to {log_of(work_dir)}')
    scalars = ScalarsReader(work_dir)
    progress = Progress(config.train_cfg.max_iters)
    for _ in run(command, log_of(work_dir)):
        progress.show(scalars.read())
    progress.close(scalars.read())
    return scalars.merged, Path((work_dir / 'last_checkpoint').read_text())


def evaluate_untrained(
    config: Config, options: dict[str, Any], work_dir: Path, seed: int
) -> dict[str, float]:
    """Evaluate a model with random weights with tools/test.py.

    Returns:
        dict[str, float]: The logged figures.
    """
    import torch
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import set_random_seed

    work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = work_dir / 'untrained.pth'
    with output_to(work_dir / 'init.log'):
        init_default_scope(config.default_scope)
        set_random_seed(seed)
        model = MODELS.build(config.model)
        model.init_weights()
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
    before = set(work_dir.glob('*/*.json'))
    command = tool_command('test.py', config, options, work_dir, str(checkpoint))
    for _ in run(command, log_of(work_dir)):
        pass
    (figures,) = set(work_dir.glob('*/*.json')) - before
    return json.loads(figures.read_text())


def tool_command(
    tool: str, config: Config, options: dict[str, Any], work_dir: Path, *arguments: str
) -> list[str]:
    """Command line of a script in tools/."""
    command = [sys.executable, relative(REPOSITORY / 'tools' / tool), relative(config.filename)]
    command += [*arguments, '--work-dir', str(work_dir)]
    return [*command, '--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def relative(path: str | Path) -> str:
    """Path from the current folder if it lies below, else as it is."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def log_of(work_dir: Path) -> Path:
    """Where all that the tool prints goes."""
    return work_dir.with_suffix('.log')


def run(command: list[str], log: Path) -> Iterator[None]:
    """Run a command, and yield now and then until it has ended.

    However this ends, nothing that the command started is left behind.

    Args:
        command (list[str]): Program and arguments.
        log (Path): File for what it prints.

    Raises:
        ToolError: If the command fails.
    """
    # Networks of this size gain nothing from a second thread; on a busy machine the threads wait
    # for each other.
    environment = {'OMP_NUM_THREADS': '1', **os.environ}
    with log.open('w') as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            yield
            time.sleep(POLL_SECONDS)
    finally:
        end_group(process)
    if process.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-20:])
        raise ToolError(
            f'{tail}\n\n{command[1]} ended with status {process.returncode}; '
            f'these were the last lines of {log}'
        )


def end_group(process: subprocess.Popen) -> None:
    """End a process and all that it started, the workers of data loaders among them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)


class ScalarsReader:
    """Follow the figures that a training writes down.

    Args:
        work_dir (Path): Of the training; figures that it holds already are ignored.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._old = set(self._files())
        self.merged: dict[str, float] = {}

    def _files(self) -> Iterator[Path]:
        return self._work_dir.glob('*/vis_data/scalars.json')

    def read(self) -> dict[str, float]:
        """Give the latest value of each figure."""
        for file in set(self._files()) - self._old:
            # The last line may be half written.
            for line in file.read_text().split('\n')[:-1]:
                self.merged |= json.loads(line)
        return self.merged


class Progress:
    """One line that is drawn again on a terminal, ten lines elsewhere.

    Args:
        max_iters (int): Iterations of the whole training.
    """

    def __init__(self, max_iters: int) -> None:
        self._max_iters = max_iters
        self._shown = 0
        self._terminal = sys.stdout.isatty()

    def show(self, scalars: dict[str, float]) -> None:
        """Show the figures if they are new."""
        iteration = int(scalars.get('iter', 0))
        if iteration == self._shown or 'loss' not in scalars:
            return
        if not self._terminal and iteration < self._shown + self._max_iters / 10:
            return
        self._shown = iteration
        line = f'iteration {iteration}/{self._max_iters}  loss {scalars["loss"]:.3f}'
        left = (self._max_iters - iteration) * scalars['time']
        line = f'      {line}  {clock(left)} left'
        print(f'\r{line:<70}' if self._terminal else line, end='' if self._terminal else '\n')
        sys.stdout.flush()

    def close(self, scalars: dict[str, float]) -> None:
        """Show the last figures and end the line."""
        self.show(scalars)
        if self._terminal:
            print()


@contextlib.contextmanager
def output_to(log: str | Path) -> Iterator[None]:
    """Send what libraries print to a file."""
    with (
        open(log, 'w') as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield


def draw_predictions(
    config: Config, options: dict[str, Any], checkpoint: Path, picture: Path
) -> None:
    """Draw validation scenes in pairs: the truth on the left, the prediction on the right."""
    from mmengine.registry import DATASETS

    from mmlska.engine.inference import Predictor, read_image

    predictor = Predictor(config.filename, str(checkpoint), options=options)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    scenes = range(min(MAX_DRAWN, len(dataset)))
    rows = -(-len(scenes) // 2)
    figure = Figure(figsize=(12, 3.2 * rows), layout='constrained')
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (left, right) in zip(scenes, axes, strict=False):
        truth = dataset[index]['data_samples']
        prediction = predictor(truth.img_path)
        for axis, title in ((left, 'truth'), (right, 'prediction')):
            axis.imshow(read_image(truth.img_path))
            axis.set_title(title)
        if predictor.is_detector:
            draw_instances(left, truth.gt_instances)
            draw_instances(right, confident(prediction.pred_instances))
        else:
            draw_segments(left, truth.gt_sem_seg)
            draw_segments(right, prediction.pred_sem_seg)
    figure.savefig(picture, dpi=100)


def confident(instances: InstanceData) -> InstanceData:
    """Keep the detections that are worth drawing."""
    return instances[instances.scores > MIN_DRAWN_SCORE]


def draw_instances(axis: Axes, instances: InstanceData) -> None:
    """Draw boxes, masks where there are any, and what each digit is taken for."""
    from mmdet.structures.bbox import get_box_tensor
    from mmdet.structures.mask import BitmapMasks

    masks = instances.get('masks', [])
    if isinstance(masks, BitmapMasks):
        masks = masks.masks
    for label, mask in zip(instances.labels, masks, strict=False):
        lay_over(axis, np.asarray(mask, bool), int(label))
    for label, box in zip(instances.labels, get_box_tensor(instances.bboxes), strict=True):
        left, top, right, bottom = box.tolist()
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top)
        frame.set(fill=False, edgecolor=colour_of(int(label)), linewidth=1.5)
        axis.add_patch(frame)
        write_digit(axis, left, top, int(label))


def draw_segments(axis: Axes, segments: PixelData) -> None:
    """Draw the pixels of each digit, and what connected pixels are taken for."""
    labels = segments.data.squeeze(0).numpy()
    for digit in range(len(DIGITS)):
        mask = labels == digit + 1
        lay_over(axis, mask, digit)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        for left, top, _, _, area in boxes[1:]:
            if area >= MIN_LABELLED_AREA:
                write_digit(axis, left, top, digit)


def colour_of(digit: int) -> tuple[float, ...]:
    """Colour of a digit, red, green and blue from 0 to 1."""
    return colormaps['tab10'](digit)[:3]


def lay_over(axis: Axes, mask: np.ndarray, digit: int) -> None:
    """Colour the pixels of a mask."""
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = (*colour_of(digit), 0.8)
    axis.imshow(layer)


def write_digit(axis: Axes, left: float, top: float, digit: int) -> None:
    """Write which digit it is beside the upper left corner of a box."""
    frame = {'facecolor': colour_of(digit), 'edgecolor': 'none', 'pad': 1.5}
    axis.text(left, top, DIGITS[digit], color='white', weight='bold', va='center', bbox=frame)


if __name__ == '__main__':
    main()
