"""What the user of an exported file has to know: how images are prepared, and what comes out."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from mmlska import __version__

from .config import DETECTION, task_of, type_name
from .inference import split_pipeline, test_dataset

# Steps of a test pipeline that leave the pixels as they are.
NEUTRAL = ('PackDetInputs', 'PackSegInputs', 'LoadAnnotations')


def describe_model(
    cfg: Config, name: str, model: nn.Module, dataset_meta: Mapping, end_to_end: bool
) -> dict[str, Any]:
    """Everything beside the graph, in values that JSON knows.

    Args:
        cfg: The config of the model, with its test pipeline.
        name: What the file calls the config.
        model: The detector or segmentor.
        dataset_meta: Its ``classes``, and ``palette`` if there is one.
        end_to_end: Whether the graph ends in boxes or label maps.

    Returns:
        ``task``, ``end_to_end``, ``classes``, ``palette`` (red, green, blue), ``config`` and
        ``mmlska_version``; how an image is prepared, in this order: ``resize``, ``pad``, ``mean``,
        ``std`` and ``channel_order``, ``pad_after``; for segmentors ``align_corners``, ``window``,
        the size and stride of the windows that the model is tested in, and ``threshold`` of the
        only logit. Scales are width and height, sizes height and width.

    Raises:
        ValueError: If the test pipeline prepares images in a way that the file could not tell.
    """
    is_detector = task_of(cfg) == DETECTION
    palette = dataset_meta.get('palette')
    told = dict(
        task=_task(model, is_detector),
        end_to_end=end_to_end,
        classes=list(dataset_meta['classes']),
        palette=[list(map(int, colour)) for colour in palette] if palette else None,
        config=name,
        mmlska_version=__version__,
        **_pipeline_steps(cfg),
        **_normalisation(model.data_preprocessor),
    )
    return told if is_detector else told | _segmentation(model)


def fixed_size(told: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width for a file that takes one size.

    That is a window, or what images are padded to before they are normalised, or else as large as
    resizing makes a landscape for a detector and a square for a segmentor.

    Args:
        told: What :func:`describe_model` returns.

    Raises:
        ValueError: If the test pipeline makes images of no particular size.
    """
    if told.get('window'):
        return tuple(told['window']['size'])
    if told['pad'] and told['pad']['size']:
        return tuple(told['pad']['size'])
    scales = [step['scale'] for step in told['resize'] if 'scale' in step]
    if not scales:
        raise ValueError('the test pipeline resizes to no particular size: give one, --size H W')
    width, height = scales[-1]
    if scales[-1] and any(step.get('keep_ratio') for step in told['resize']):
        height, width = min(scales[-1]), max(scales[-1])
        width = height if 'window' in told else width
    divisor = told['pad_after']['divisor']
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _task(model: nn.Module, is_detector: bool) -> str:
    if not is_detector:
        return 'semantic segmentation'
    return 'instance segmentation' if getattr(model, 'with_mask', False) else 'object detection'


def _segmentation(model: nn.Module) -> dict[str, Any]:
    test_cfg = model.test_cfg or {}
    window = None
    if test_cfg.get('mode') == 'slide':
        window = dict(size=list(test_cfg['crop_size']), stride=list(test_cfg['stride']))
    threshold = float(model.decode_head.threshold) if model.out_channels == 1 else None
    return dict(align_corners=bool(model.align_corners), window=window, threshold=threshold)


def _pipeline_steps(cfg: Config) -> dict[str, Any]:
    """``resize``, a list, and ``pad``, None where the test pipeline has no such step."""
    loading, steps = split_pipeline(test_dataset(cfg).pipeline)
    if [type_name(step) for step in loading] != ['LoadImageFromFile']:
        names = ', '.join(map(type_name, loading))
        raise ValueError(f'a file can tell of images that LoadImageFromFile loads, not of {names}')
    told: dict[str, Any] = dict(resize=[], pad=None)
    for step in steps:
        kind = type_name(step)
        if kind in ('Resize', 'ResizeToMultiple') and not told['pad']:
            told['resize'].append(_resize(step))
        elif kind == 'Pad' and not told['pad']:
            told['pad'] = _pad(step)
        elif kind not in NEUTRAL:
            raise ValueError(
                f'the test pipeline has the step {kind}, which a file cannot tell: after loading '
                'an image it may resize it (Resize, ResizeToMultiple) and then pad it once (Pad)'
            )
    return told


def _resize(step: Mapping) -> dict[str, Any]:
    if step.get('interpolation', 'bilinear') != 'bilinear':
        raise ValueError(
            f'the step {type_name(step)} resizes {step["interpolation"]}, a file tells bilinear'
        )
    if type_name(step) == 'ResizeToMultiple':
        return dict(multiple_of=int(step.get('size_divisor', 32)))
    if step.get('scale') is None:
        raise ValueError('the step Resize has no scale: a file tells no other way to resize')
    scale = step['scale']
    scale = [scale, scale] if isinstance(scale, int) else list(scale)
    return dict(scale=scale, keep_ratio=bool(step.get('keep_ratio', False)))


def _pad(step: Mapping) -> dict[str, Any]:
    value = step.get('pad_val', 0)
    value = value.get('img', 0) if isinstance(value, Mapping) else value
    values = set(value) if isinstance(value, Sequence) else {value}
    if len(values) > 1:
        raise ValueError(f'the step Pad fills channels with {value}: a file tells one value')
    width_height = step.get('size')
    return dict(
        size=list(width_height)[::-1] if width_height else None,
        divisor=int(step.get('size_divisor') or 1),
        square=bool(step.get('pad_to_square', False)),
        value=float(values.pop()),
    )


def _normalisation(preprocessor: nn.Module) -> dict[str, Any]:
    """What the model's preprocessor does with pixels from 0 to 255 in the order blue to red."""
    mean, std = [0.0] * 3, [1.0] * 3
    if preprocessor._enable_normalize:
        mean, std = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
    if len(mean) != 3:
        raise ValueError(f'the model takes images of {len(mean)} channels, a file tells of three')
    return dict(
        mean=mean,
        std=std,
        channel_order='rgb' if _swaps_channels(preprocessor) else 'bgr',
        pad_after=_padding(preprocessor),
    )


def _swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether the preprocessor turns the channels round; mmseg 1.2 has its own name for it."""
    names = ('_channel_conversion', 'channel_conversion')
    return any(getattr(preprocessor, name, False) for name in names)


def _padding(preprocessor: nn.Module) -> dict[str, Any]:
    """How normalised images are padded in tests: mmseg has settings of its own for that."""
    if hasattr(preprocessor, 'test_cfg'):
        settings = preprocessor.test_cfg or {}
        size, divisor = settings.get('size'), settings.get('size_divisor')
        value = preprocessor.pad_val
    else:
        size, divisor, value = None, preprocessor.pad_size_divisor, preprocessor.pad_value
    return dict(size=list(size) if size else None, divisor=int(divisor or 1), value=float(value))
