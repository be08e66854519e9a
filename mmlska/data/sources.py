"""The files that the data sets of a config read, whatever wrappers they stand in."""

import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
# Children of CocoDataset whose files hold something else.
OTHER_FILES = ('CocoPanopticDataset', 'LVISV1Dataset', 'LVISV05Dataset', 'CocoCaptionDataset')


@dataclass(frozen=True)
class CocoSource:
    """A detection set.

    Attributes:
        key: Where it stands in the config.
        path: The annotation file.
        image_folder: Folder that ``file_name`` starts at.
        classes: What the config calls the classes, None if it says nothing.
        masks: Whether the run reads masks.
        evaluated: Whether it is the truth of an evaluation.
        ignores_orientation: Whether photographs are loaded as they are stored.
        truths: Annotation files by which metrics judge it.
        filters_empty: Whether a training leaves out images without objects of its classes.
        min_size: Shorter side, in pixels, below which a training leaves an image out.
        decoder: What decodes the images, ``'cv2'`` for OpenCV; '' if nobody can tell.
    """

    key: str
    path: str
    image_folder: str
    classes: Any
    masks: bool
    evaluated: bool
    ignores_orientation: bool
    truths: tuple[str, ...] = ()
    filters_empty: bool = False
    min_size: int = 0
    decoder: str = ''


@dataclass(frozen=True)
class LabelSource:
    """A segmentation set.

    Attributes:
        key: Where it stands in the config.
        image_folder: Folder of the images.
        label_folder: Folder of the label maps.
        image_suffix: End of the names of the images.
        label_suffix: End of the names of the maps.
        list_file: File with the names, '' if the folder is the list.
        classes: Names of the classes in the maps, None if nothing says them. Where the config
            chooses some of those that the class of the data set has, the maps hold the latter.
        reduce_zero_label: Whether 0 stands for no class.
        ignore_index: Value of pixels that do not count.
        read_by_mmseg: Whether the pipeline reads the maps by mmseg's own ``LoadAnnotations``, for
            which a value is the index of a class.
        decoder: What decodes the images, ``'cv2'`` for OpenCV; '' if nobody can tell.
    """

    key: str
    image_folder: str
    label_folder: str
    image_suffix: str
    label_suffix: str
    list_file: str
    classes: Any
    reduce_zero_label: bool
    ignore_index: int
    read_by_mmseg: bool
    decoder: str = ''


def leaf_datasets(key: str, dataset: dict) -> Iterator[tuple[str, dict]]:
    """Datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``, with their keys.

    What is built already, as scripts may hand it to a runner, is left out.
    """
    if not isinstance(dataset, dict):
        return
    if 'dataset' in dataset:
        yield from leaf_datasets(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        for index, part in enumerate(dataset['datasets']):
            yield from leaf_datasets(f'{key}.datasets.{index}', part)
    else:
        yield key, dataset


def is_remote(path: Any, settings: dict) -> bool:
    """Whether a path is read by a storage backend other than the local disk."""
    path = str(path)
    backend = (settings.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or '://' in path or path.startswith('s3:')


def is_path(value: Any) -> bool:
    """Whether a value can be the path of a file."""
    return isinstance(value, (str, os.PathLike))


def find_sources(
    cfg: Config, splits: tuple[str, ...]
) -> tuple[list[CocoSource | LabelSource], list[str]]:
    """Find what the data sets of some splits read.

    Args:
        cfg: A config.
        splits: Of ``train``, ``val`` and ``test``. A split without a data loader is left out.

    Returns:
        The sources, and the keys of data sets of other kinds, each with the reason.
    """
    sources, others = [], []
    scope = cfg.get('default_scope')
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        metrics = cfg.get(f'{split}_evaluator') if split != 'train' else None
        for key, dataset in leaf_datasets(f'{split}_dataloader.dataset', loader['dataset']):
            kind = dataset_class(dataset, scope)
            names = {base.__name__ for base in getattr(kind, '__mro__', ())}
            root = dataset.get('data_root') or ''
            if is_remote(root, dataset) or is_remote(str(dataset.get('ann_file') or ''), dataset):
                others.append(f'{key}: lies in a remote storage')
            elif not is_path(dataset.get('ann_file') or ''):
                others.append(f'{key}: its ann_file is no path')
            elif 'CocoDataset' in names and not names & set(OTHER_FILES):
                sources.append(coco_source(key, dataset, kind, metrics))
            elif 'BaseSegDataset' in names:
                sources.append(label_source(key, dataset, kind))
            else:
                others.append(f'{key}: a {getattr(kind, "__name__", kind)} is of another format')
    return sources, others


def dataset_class(dataset: dict, scope: str | None) -> Any:
    """Class of a data set, by its name or as it is; the name itself where nobody knows it."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind) or kind


def classes_of(dataset: dict, kind: Any) -> Any:
    """Classes as the config or else the class of the data set has them."""
    own = dataset.get('metainfo') or {}
    classes = own.get('classes', getattr(kind, 'METAINFO', {}).get('classes'))
    if isinstance(classes, str) and os.path.isfile(classes):
        with open(classes, encoding='utf-8') as lines:
            return [line.rstrip('\n\r') for line in lines]
    return classes


def below(root: str, path: str | None) -> str:
    """A path that starts at the root of its data set."""
    return os.path.join(root, path or '')


def option(dataset: dict, kind: Any, name: str, default: Any) -> Any:
    """An argument of a data set: the config's, else the one that its class sets, else the usual."""
    if name in dataset:
        return dataset[name]
    for base in getattr(kind, '__mro__', ()):
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return default


def step_settings(dataset: dict, name: str) -> dict:
    """Settings of the first pipeline step of that name, {} if there is none."""
    for step in dataset.get('pipeline') or ():
        if bare_type(step) == name:
            return step
    return {}


def bare_type(settings: dict) -> str:
    """Name of what settings build, without its scope; '' where nobody can tell."""
    kind = settings.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def has_step(dataset: dict, name: str) -> bool:
    """Whether a pipeline has a step of that name."""
    return bool(step_settings(dataset, name))


def coco_source(key: str, dataset: dict, kind: Any, metrics: Any) -> CocoSource:
    """What a detection set reads."""
    prefix = dataset.get('data_prefix') or {}
    folder = prefix.get('img', '') if isinstance(prefix, dict) else prefix
    root = dataset.get('data_root') or ''
    color = step_settings(dataset, 'LoadImageFromFile').get('color_type', 'color')
    judges = metrics if isinstance(metrics, (list, tuple)) else [metrics or {}]
    wanted = [metric.get('metric', 'bbox') for metric in judges]
    filters = dataset.get('filter_cfg') or {}
    masks = any('segm' in name for name in wanted)
    masks = masks or (
        bool(step_settings(dataset, 'LoadAnnotations').get('with_mask')) and not metrics
    )
    return CocoSource(
        key,
        below(root, dataset.get('ann_file')),
        below(root, folder),
        classes_of(dataset, kind),
        masks,
        metrics is not None,
        'ignore_orientation' in color or color == 'unchanged',
        tuple(filter(None, map(truth_of, judges))),
        bool(filters.get('filter_empty_gt', False)),
        filters.get('min_size', 0),
        decoder_of(dataset),
    )


def decoder_of(dataset: dict) -> str:
    """What a pipeline decodes images with, '' if nobody can tell."""
    if not has_step(dataset, 'LoadImageFromFile'):
        return ''
    return step_settings(dataset, 'LoadImageFromFile').get('imdecode_backend', 'cv2')


def truth_of(metric: dict) -> str:
    """The annotation file by which a metric judges in COCO's way, '' if it names none here."""
    path = metric.get('ann_file')
    judges = bare_type(metric).endswith('CocoMetric') and is_path(path or None)
    return str(path) if judges and not is_remote(path, metric) else ''


def label_source(key: str, dataset: dict, kind: Any) -> LabelSource:
    """What a segmentation set reads."""
    prefix, root = dataset.get('data_prefix') or {}, dataset.get('data_root') or ''
    list_file = dataset.get('ann_file') or ''
    return LabelSource(
        key,
        below(root, prefix.get('img_path', '')),
        below(root, prefix.get('seg_map_path', '')) if 'seg_map_path' in prefix else '',
        option(dataset, kind, 'img_suffix', '.jpg'),
        option(dataset, kind, 'seg_map_suffix', '.png'),
        below(root, list_file) if list_file else '',
        getattr(kind, 'METAINFO', {}).get('classes') or classes_of(dataset, kind),
        bool(option(dataset, kind, 'reduce_zero_label', False)),
        option(dataset, kind, 'ignore_index', 255),
        has_step(dataset, 'LoadAnnotations'),
        decoder_of(dataset),
    )


def label_pairs(source: LabelSource) -> list[tuple[str, str]]:
    """Image and label map of each sample, as mmseg pairs them by their names."""
    if source.list_file and os.path.isfile(source.list_file):
        with open(source.list_file, encoding='utf-8') as lines:
            stems = [line.strip() for line in lines if line.strip()]
        names = [stem + source.image_suffix for stem in stems]
    else:
        names = sorted(
            os.path.relpath(os.path.join(folder, name), source.image_folder)
            for folder, _, files in os.walk(source.image_folder)
            for name in files
            if name.endswith(source.image_suffix)
        )
    cut = -len(source.image_suffix) or None
    return [
        (
            os.path.join(source.image_folder, name),
            os.path.join(source.label_folder, name[:cut] + source.label_suffix),
        )
        for name in names
    ]
