"""The stock evaluation of a config, once for each corruption and severity.

A cell of the table is one evaluation as ``tools/test.py`` does it, with one more step in the
pipeline, :class:`mmlska.datasets.CorruptImage`, see :func:`insert_corruption`. Cells are
evaluated in processes of their own; each finished cell is a file, so that an interrupted run goes
on where it was.
"""

import copy
import hashlib
import json
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.utils import ProgressBar

from mmlska.data import end_with_parent
from mmlska.datasets.corruptions import library_version
from mmlska.engine.config import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    load_config,
    task_of,
    type_name,
)
from mmlska.engine.inference import channel_order, test_dataset
from mmlska.engine.launch import build_test_runner, prepare_testing

from .robustness import Robustness

# Keys of the main figures by task.
MAIN_FIGURES = {
    DETECTION: re.compile(r'(^|[/_])(mAP|AP|PQ)$'),
    SEGMENTATION: re.compile(r'(^|/)mIoU$'),
    CLASSIFICATION: re.compile(r'(^|/)top1$'),
}
Figures = dict[str, float]


class Cell(NamedTuple):
    """A corruption at a severity; ``Cell('clean', 0)`` is none."""

    corruption: str
    severity: int


CLEAN = Cell('clean', 0)


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated.

    Attributes:
        name: Its name in tables and pictures.
        config: Path of a config, or the name of a shipped one.
        checkpoint: Its weights.
    """

    name: str
    config: str
    checkpoint: str


@dataclass(frozen=True)
class Settings:
    """How all models are evaluated.

    Attributes:
        images: How many images, evenly spread over the test set; None for all.
        seed: Seed of the corruptions' noise.
        options: Overrides of the configs by dotted key.
    """

    images: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def cells_of(corruptions: Iterable[str], severities: Iterable[int]) -> list[Cell]:
    """The clean cell, then all severities of each corruption."""
    severities = sorted(set(severities))
    return [CLEAN, *(Cell(name, severity) for name in corruptions for severity in severities)]


def evaluate_cells(
    subjects: Sequence[Subject],
    cells: Sequence[Cell],
    out_dir: str | Path,
    settings: Settings | None = None,
    jobs: int = 1,
) -> dict[str, dict[Cell, Figures]]:
    """Evaluate models under corruptions; cells that an earlier run has finished are read again.

    Shows its progress on stderr. What the evaluations print goes to ``evaluation.log`` in the
    folder.

    Args:
        subjects: The models; their names differ.
        cells: What to evaluate, see :func:`cells_of`.
        out_dir: Folder that keeps a file for each finished cell.
        settings: How. Defaults to the whole test sets.
        jobs: How many processes evaluate cells at the same time. Defaults to 1.

    Returns:
        By name and cell all figures that the config's metrics gave, in their own units.

    Raises:
        FileNotFoundError: If a config, its data or a checkpoint is missing.
        RuntimeError: If a cell fails. The message names it, its reason and the log.
        ValueError: If names are not unique, or a config cannot be evaluated.
    """
    settings = settings or Settings()
    out_dir = Path(out_dir)
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise ValueError(f'the models need names that differ, got {", ".join(names)}')
    files = {}
    for subject in subjects:
        folder = out_dir / 'cells' / f'{_plain(subject.name)}-{_digest(subject, settings)}'
        folder.mkdir(parents=True, exist_ok=True)
        for cell in cells:
            files[subject, cell] = folder / f'{cell.corruption}_{cell.severity}.json'
    missing = [key for key, file in files.items() if not file.is_file()]
    if missing:
        _evaluate_missing(missing, files, settings, jobs, out_dir / 'evaluation.log')
    found: dict[str, dict[Cell, Figures]] = {name: {} for name in names}
    for (subject, cell), file in files.items():
        found[subject.name][cell] = json.loads(file.read_text(encoding='utf-8'))
    return found


def _evaluate_missing(
    missing: Sequence[tuple[Subject, Cell]],
    files: Mapping[tuple[Subject, Cell], Path],
    settings: Settings,
    jobs: int,
    log: Path,
) -> None:
    print(f'{len(files) - len(missing)} of {len(files)} cells are finished', file=sys.stderr)
    jobs = min(jobs, len(missing))
    threads = max(1, torch.get_num_threads() // jobs)
    bar = ProgressBar(len(missing), file=sys.stderr)
    # Not forked: a process that has used a GPU, or threads, cannot be.
    with ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=_start_process,
        initargs=(str(log), threads),
    ) as executor:
        waiting: dict[Future, tuple[Subject, Cell]] = {
            executor.submit(_evaluate_into, files[key], *key, settings): key for key in missing
        }
        try:
            for future in as_completed(waiting):
                _check_cell(future, *waiting[future], log)
                bar.update()
        except BaseException:
            # Else the cells that wait would be evaluated before the error is told.
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    print(file=sys.stderr)


def _check_cell(future: Future, subject: Subject, cell: Cell, log: Path) -> None:
    error = future.exception()
    if error is not None:
        raise RuntimeError(
            f'{subject.name}, {cell.corruption} {cell.severity}: '
            f'{type(error).__name__}: {error} (see {log}; finished cells are kept)'
        ) from error


def _start_process(log: str, threads: int) -> None:
    """Send what a process prints to the log, and end it with the one that started it."""
    with open(log, 'ab', buffering=0) as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    torch.set_num_threads(threads)
    end_with_parent()


def _evaluate_into(file: Path, subject: Subject, cell: Cell, settings: Settings) -> None:
    try:
        figures = evaluate_cell(subject, cell, settings, file.parent / 'work_dir')
    except Exception:
        traceback.print_exc()
        raise
    # Under its name only when it is whole.
    partial = file.with_suffix('.part')
    partial.write_text(json.dumps(figures, indent=1) + '\n', encoding='utf-8')
    partial.replace(file)


def evaluate_cell(
    subject: Subject, cell: Cell, settings: Settings, work_dir: str | Path
) -> Figures:
    """Evaluate one model under one corruption, in this process.

    Args:
        subject: The model.
        cell: The corruption and its severity.
        settings: How.
        work_dir: Where mmengine's log goes.

    Returns:
        All figures of the config's metrics.

    Raises:
        FileNotFoundError: If the config, its data or the checkpoint is missing.
        ValueError: If the config cannot be evaluated under corruptions.
    """
    options = copy.deepcopy(settings.options)
    cfg = prepare_testing(subject.config, subject.checkpoint, options, str(work_dir))
    if settings.images is not None:
        keep_some_images(cfg, settings.images, Path(work_dir))
    if cell != CLEAN:
        insert_corruption(cfg, cell, settings.seed)
    # Workers that outlive the evaluation would add up.
    cfg.test_dataloader.persistent_workers = False
    figures = build_test_runner(cfg).test()
    return {key: float(value) for key, value in figures.items()}


def insert_corruption(cfg: Config, cell: Cell, seed: int = 0) -> None:
    """Put a corruption into the test pipeline, in place.

    It stands behind the step that loads the image; for a classifier before the one that packs it,
    as ImageNet-C, to which its errors are compared, corrupts the crop that a network gets.

    Raises:
        ValueError: If the config has no single test set, or its pipeline loads no image.
    """
    dataset = single_test_set(cfg)
    pipeline = list(dataset.pipeline)
    loading = [i for i, step in enumerate(pipeline) if re.match('Load.*Image', type_name(step))]
    if not loading:
        raise ValueError(
            'the test pipeline of the config loads no image: its steps are '
            f'{", ".join(map(type_name, pipeline))}'
        )
    step = dict(
        type='mmlska.CorruptImage',
        corruption=cell.corruption,
        severity=cell.severity,
        channel_order=channel_order(pipeline[loading[-1]]),
        seed=seed,
    )
    packing = [i for i, one in enumerate(pipeline) if type_name(one).startswith('Pack')]
    is_classifier = task_of(cfg) == CLASSIFICATION
    pipeline.insert(packing[0] if is_classifier and packing else loading[-1] + 1, step)
    dataset.pipeline = pipeline


def single_test_set(cfg: Config) -> dict:
    """Config of the test set, without its wrappers.

    Raises:
        ValueError: If there is none, or several that are joined.
    """
    if not cfg.get('test_dataloader'):
        raise ValueError(f'{cfg.filename} has no test set (test_dataloader)')
    dataset = test_dataset(cfg)
    if 'pipeline' not in dataset:
        raise ValueError(
            f'{cfg.filename}: a test set of type {type_name(dataset)} has no pipeline of its own '
            'to put a corruption into; name one of its parts as test_dataloader.dataset'
        )
    return dataset


def keep_some_images(cfg: Config, number: int, folder: Path) -> None:
    """Test on fewer images, evenly spread over the test set, in place.

    Metrics of COCO count every image of their annotation file, so that dataset and metrics get a
    file with the chosen ones.

    Args:
        cfg: The config.
        number: How many. A set that is smaller stays as it is.
        folder: Where the annotation file goes.

    Raises:
        ValueError: If the number is not positive, or the metric reads another file.
    """
    if number < 1:
        raise ValueError(f'the number of images must be positive, got {number}')
    dataset = single_test_set(cfg)
    metrics = cfg.test_evaluator
    metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
    reading = [metric for metric in metrics if metric.get('ann_file')]
    if not reading:
        dataset.indices = number
        return
    annotations = Path(dataset.get('data_root') or '', dataset.ann_file)
    others = [m.ann_file for m in reading if Path(m.ann_file).resolve() != annotations.resolve()]
    if others:
        raise ValueError(
            f'the test set reads {str(annotations)!r} and its metric {others[0]!r}: evaluate on '
            'all images (without --images)'
        )
    chosen = folder.resolve() / f'{annotations.stem}_{number}.json'
    _write_some(annotations, chosen, number)
    for settings in (dataset, *reading):
        settings.ann_file = str(chosen)


def _write_some(annotations: Path, chosen: Path, number: int) -> None:
    content = json.loads(annotations.read_text(encoding='utf-8'))
    images = content['images']
    if len(images) > number:
        images = [images[i * len(images) // number] for i in range(number)]
    kept = {image['id'] for image in images}
    content['images'] = images
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in kept]
    chosen.parent.mkdir(parents=True, exist_ok=True)
    partial = chosen.with_suffix(f'.{os.getpid()}.part')
    partial.write_text(json.dumps(content), encoding='utf-8')
    partial.replace(chosen)


def main_figures(task: str, figures: Mapping[str, float]) -> list[str]:
    """Keys of the main figures of a task: AP of boxes and of masks, mIoU, or top-1 accuracy.

    Raises:
        ValueError: If there is none, as for a detector that finds nothing at all.
    """
    if task not in MAIN_FIGURES:
        raise ValueError(f'the metric is unknown for {task}; name it: {", ".join(figures)}')
    keys = [key for key in figures if MAIN_FIGURES[task].search(key)]
    if not keys:
        raise ValueError(
            'the clean evaluation has no main figure; mmdet gives none for a detector that finds '
            f'nothing. It gave {", ".join(figures) or "nothing"}'
        )
    return keys


def robustness_of(
    name: str, task: str, key: str, figures: Mapping[Cell, Mapping[str, float]]
) -> Robustness:
    """One metric of the cells of one model, in percent.

    A detector that finds nothing in a whole corrupted set has an AP of 0, for which mmdet gives no
    figure.

    Raises:
        ValueError: If the clean evaluation, or a corrupted one of another task, lacks the figure.
    """
    # mmdet gives shares of 1, save for panoptic quality; the others give percent.
    factor = 100 if task == DETECTION and 'panoptic' not in key else 1
    cells: dict[str, dict[int, float]] = {}
    for cell, found in figures.items():
        if key not in found and (task != DETECTION or cell == CLEAN):
            raise ValueError(
                f'{name}, {cell.corruption} {cell.severity}: no figure {key!r}; it has '
                f'{", ".join(found) or "none"}'
            )
        cells.setdefault(cell.corruption, {})[cell.severity] = factor * found.get(key, 0.0)
    clean = cells.pop(CLEAN.corruption)[CLEAN.severity]
    return Robustness(name, clean, cells)


def task_of_subjects(subjects: Sequence[Subject]) -> str:
    """The one task of all models.

    Raises:
        ValueError: If their tasks differ.
    """
    tasks = {subject.name: task_of(load_config(subject.config)) for subject in subjects}
    if len(set(tasks.values())) > 1:
        listed = ', '.join(f'{name}: {task}' for name, task in tasks.items())
        raise ValueError(f'models of one task are compared, not {listed}')
    return next(iter(tasks.values()))


def _plain(name: str) -> str:
    return re.sub(r'[^\w.=-]+', '_', name)


def _digest(subject: Subject, settings: Settings) -> str:
    """A name for all that the figures depend on, save the data themselves."""
    cfg = prepare_testing(subject.config, subject.checkpoint, copy.deepcopy(settings.options))
    single_test_set(cfg)
    kept = ('model', 'test_dataloader', 'test_evaluator', 'default_scope')
    facts = dict(
        config={key: cfg.get(key) for key in kept},
        checkpoint=file_hash(subject.checkpoint),
        library=library_version(),
        **asdict(settings),
    )
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file; an address stands for itself."""
    if '://' in str(path):
        return str(path)
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def measure_robustness(
    subjects: Sequence[Subject],
    corruptions: Sequence[str],
    severities: Sequence[int],
    out_dir: str | Path,
    settings: Settings | None = None,
    jobs: int = 1,
    keys: Sequence[str] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, list[Robustness]]:
    """Evaluate models of one task under corruptions, see :func:`evaluate_cells`.

    Args:
        subjects: The models.
        corruptions: Names, see :func:`mmlska.datasets.corruptions.choose_corruptions`.
        severities: 1 to 5.
        out_dir: Folder of the finished cells.
        settings: How. Defaults to the whole test sets.
        jobs: Processes at the same time. Defaults to 1.
        keys: Figures to compare. Defaults to the main ones of the task.
        tell: Takes a line about what cannot be compared. Defaults to ``print``.

    Returns:
        By the key of a figure, the robustness of each model that has it.

    Raises:
        ValueError: If the models are of several tasks or share a name, or none has one of the
            figures.
    """
    task = task_of_subjects(subjects)
    cells = cells_of(corruptions, severities)
    found = evaluate_cells(subjects, cells, out_dir, settings, jobs)
    clean = {name: figures[CLEAN] for name, figures in found.items()}
    if keys is None:
        wanted = [key for figures in clean.values() for key in main_figures(task, figures)]
        keys = list(dict.fromkeys(wanted))
    compared = {}
    for key in keys:
        having = [name for name in found if key in clean[name]]
        for name in set(found) - set(having):
            tell(f'{name} has no figure {key!r}; it has {", ".join(clean[name])}')
        if having:
            compared[key] = [robustness_of(name, task, key, found[name]) for name in having]
    if not compared:
        raise ValueError(f'no model has a figure {" or ".join(map(repr, keys))}')
    return compared
