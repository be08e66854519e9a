"""A look at the data of a config before anything else is built: folders, and annotation files."""

import logging
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmlska.data import (
    CocoSource,
    Fault,
    find_sources,
    has_errors,
    is_path,
    is_remote,
    leaf_datasets,
    quick_faults,
    remembered,
)

from .config import type_name

# Metrics of mmdet that take the truth from their file, or else from the samples.
COCO_METRICS = ('CocoMetric', 'FasterCocoMetric')
# Places of a fault that are shown before training; tools/dataset_tools/check_dataset.py shows all.
SHOWN = 5


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that every file and folder that the datasets of some splits name is there.

    Paths of a storage backend other than the local disk are not looked at.

    Args:
        cfg: A config.
        splits: Of ``train``, ``val`` and ``test``. A split without a loop is left out.

    Raises:
        ValueError: If a data set has text for its ``classes``.
        FileNotFoundError: If something is missing. Names each path, the config key it comes from,
            the layout that is expected, and the options that point elsewhere.
    """
    problems, keys = [], []
    for split in splits:
        if cfg.get(f'{split}_cfg') is None or cfg.get(f'{split}_dataloader') is None:
            continue
        key = f'{split}_dataloader.dataset'
        for dataset_key, dataset in leaf_datasets(key, cfg[f'{split}_dataloader']['dataset']):
            check_classes(dataset_key, dataset)
            found = dataset_problems(dataset_key, dataset)
            problems += found
            keys += [f'{dataset_key}.data_root=FOLDER'] if found else []
        evaluator = cfg.get(f'{split}_evaluator')
        found = evaluator_problems(f'{split}_evaluator', evaluator, packs_no_truth(cfg, split))
        problems += found
        keys += [f'{split}_evaluator.ann_file=FILE'] if found else []
    if problems:
        raise FileNotFoundError(
            'the data of this config is not there:\n'
            + '\n'.join(problems)
            + f'\nRelative paths start at {Path.cwd()}. Link the data there, or name its place:\n'
            + '  --cfg-options '
            + ' '.join(keys)
        )


def check_classes(key: str, dataset: dict) -> None:
    """Check that the classes of a data set are names, not the letters of one.

    Raises:
        ValueError: If they are text, as ``('screw')`` is, without a comma.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    # A path of a file with one name a line is text too, and mmengine reads it.
    if isinstance(classes, str) and not os.path.isfile(classes):
        raise ValueError(
            f'{key}.metainfo.classes={classes!r} is text, each letter of which would be a class: '
            f'write classes=({classes!r},), with a comma'
        )


def dataset_paths(dataset: dict) -> dict[str, str]:
    """Paths of a dataset below its root, by the key that names them."""
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = {'': prefix}
    paths = {'ann_file': dataset.get('ann_file')}
    paths.update({f'data_prefix.{name}'.rstrip('.'): path for name, path in prefix.items()})
    return {name: str(path) for name, path in paths.items() if path and is_path(path)}


def dataset_problems(key: str, dataset: dict) -> list[str]:
    """Lines about what one dataset misses, followed by the layout that it expects."""
    root = dataset.get('data_root') or ''
    paths = dataset_paths(dataset)
    if is_remote(root, dataset) or any(is_remote(path, dataset) for path in paths.values()):
        return []
    if root and not os.path.isdir(root):
        found = [f'  {key}.data_root: the folder {root!r} does not exist']
    else:
        found = [
            f'  {key}.{name}: {os.path.join(root, path)!r} {state}'
            for name, path in paths.items()
            if (state := path_problem(os.path.join(root, path)))
        ]
    if not found or not root:
        return found
    layout = [f'      {path}  ({name})' for name, path in paths.items()]
    return [*found, f'    {dataset.get("type")} expects in {root!r}:', *layout]


def evaluator_problems(
    key: str, evaluator: dict | list | None, lacks_truth: bool = False
) -> list[str]:
    """Lines about annotation files that metrics need and that are not there, or not named."""
    if isinstance(evaluator, (list, tuple)):
        return [
            line
            for index, metric in enumerate(evaluator)
            for line in evaluator_problems(f'{key}.{index}', metric, lacks_truth)
        ]
    path = (evaluator or {}).get('ann_file')
    if lacks_truth and not path and type_name(evaluator or {}) in COCO_METRICS:
        return [
            f'  {key}.ann_file: not set, so that the evaluation has no objects to compare with '
            f"(or have 'instances' in meta_keys of PackDetInputs)"
        ]
    if not path or is_remote(path, evaluator) or os.path.exists(path):
        return []
    return [f'  {key}.ann_file: {path!r} does not exist']


def packs_no_truth(cfg: Config, split: str) -> bool:
    """Whether the samples of a split reach the metrics without their objects, as is usual."""
    key, dataset = f'{split}_dataloader', cfg[f'{split}_dataloader']['dataset']
    steps = [list(leaf.get('pipeline') or [{}])[-1] for _, leaf in leaf_datasets(key, dataset)]
    return any(
        type_name(step) == 'PackDetInputs' and 'instances' not in step.get('meta_keys', ())
        for step in steps
    )


def path_problem(path: str) -> str:
    """What is wrong with a path, empty if nothing."""
    if not os.path.exists(path):
        return 'does not exist'
    # A sampler over an empty dataset never yields and never ends.
    if os.path.isdir(path) and not os.listdir(path):
        return 'is an empty folder'
    return ''


def check_content(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check what annotation files and a first label map tell; the first process does it.

    Above all it finds what would otherwise fail at the first evaluation only, or never. What was
    found in an annotation file is remembered until its time or size changes.

    Args:
        cfg: A config.
        splits: Of ``train``, ``val`` and ``test``. A split without a loop is left out.

    Raises:
        ValueError: If there is an error. Names all, with their files, annotations and remedies.
    """
    if not is_main_process():
        return
    running = tuple(split for split in splits if cfg.get(f'{split}_cfg') is not None)
    faults: dict[Fault, None] = {}
    for source in find_sources(cfg, running)[0]:
        is_coco = isinstance(source, CocoSource)
        found = remembered(source, quick_faults) if is_coco else quick_faults(source)
        faults.update(dict.fromkeys(found))
    text = '\n'.join(fault.describe(SHOWN) for fault in faults)
    if has_errors(faults):
        raise ValueError(
            f'the data has faults:\n{text}\n'
            'tools/dataset_tools/check_dataset.py CONFIG tells all, looks at the images too, and '
            'mends what is safe (--fix FOLDER); tools/train.py --no-data-check, or in the config '
            'default_hooks=dict(data_check=None), trains all the same'
        )
    if faults:
        print_log(f'about the data:\n{text}', logger='current', level=logging.WARNING)
