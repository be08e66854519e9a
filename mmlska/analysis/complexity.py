"""Parameters and multiply-adds, counted without data, weights or a pass through real numbers.

Everything runs on PyTorch's ``meta`` device, where an operation has shapes and no values, so that
a detector at full resolution is counted in a second. What is counted, by PyTorch's own
``FlopCounterMode``: one multiply-add per weight and output position of convolutions and linear
layers, and those of matrix products. Not counted: biases, normalisation, activations, element-wise
operations, interpolation, RoI pooling and NMS. (mmengine's and fvcore's counters add the
normalisation layers, mmcv 1.x's the biases and activations as well.)
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from mmengine.utils import track_iter_progress
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlska.engine.bare_model import unwrapped
from mmlska.models import VAN

WHAT_IS_COUNTED = (
    'Multiply-adds of convolutions, linear layers and matrix products; without biases, '
    'normalisation, activations,\nelement-wise operations, RoI pooling and NMS. '
    'M = 10^6, G = 10^9. FLOPs of the papers = multiply-adds.'
)
PAPER_KINDS = ('LKATrivial', 'LSKATrivial', 'LKA', 'LSKA')
PAPER_KERNEL_SIZES = (7, 11, 23, 35, 53, 65)
PAPER_ARCHS = ('tiny', 'small', 'base')
IMAGENET_CLASSES = 1000
# Before 2.3 PyTorch counts by module only in those that it is told, and later warns of being told.
TRACKS_MODULES = find_spec('torch.utils.module_tracker') is not None
DENSE_HEADS = ('decode_head', 'rpn_head', 'bbox_head', 'mask_head', 'head')


@dataclass(frozen=True)
class PartComplexity:
    """Size of one part of a model.

    Attributes:
        name: Name of the part.
        params: Number of parameters.
        macs: Multiply-adds for one image, None if inference does not run the part.
        remark: What the count assumes.
    """

    name: str
    params: int
    macs: int | None
    remark: str = ''


def count_params(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: Callable[..., Any], *inputs: Any, **named_inputs: Any) -> tuple[int, Any]:
    """Run a module once.

    Args:
        module: A module, or a method of one.
        *inputs: Its inputs, on the module's device.
        **named_inputs: More of its inputs.

    Returns:
        The multiply-adds, and what the module returned.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = module(*inputs, **named_inputs)
    return counter.get_total_flops() // 2, outputs


def meta_input(*shape: int) -> torch.Tensor:
    """A tensor that has a shape and no values."""
    return torch.empty(*shape, device='meta')


def count_classifier(backbone: nn.Module, shape: tuple[int, int]) -> PartComplexity:
    """Count a backbone with the ImageNet classifier on its pooled last map, as papers do.

    Args:
        backbone: A backbone that returns a tuple of maps ``(N, C, H, W)``.
        shape: Height and width of the image, pixels.
    """
    backbone = backbone.to('meta')
    # Alone: train() of mmdet's and mmseg's ResNet, which it calls, returns nothing.
    backbone.eval()
    macs, features = count_macs(backbone, meta_input(1, 3, *shape))
    head = nn.Linear(features[-1].shape[1], IMAGENET_CLASSES, device='meta')
    head_macs, _ = count_macs(head, features[-1].mean((2, 3)))
    return PartComplexity(
        'classifier', count_params(backbone) + count_params(head), macs + head_macs
    )


def count_van(
    arch: str | dict, kind: str, kernel_size: int, shape: tuple[int, int] = (224, 224)
) -> PartComplexity:
    """Count a VAN classifier with one kind of attention.

    Args:
        arch: Architecture of :class:`mmlska.models.VAN`.
        kind: ``'LKATrivial'``, ``'LSKATrivial'``, ``'LKA'`` or ``'LSKA'``.
        kernel_size: Receptive field of the attention.
        shape: Height and width of the image, pixels.
    """
    attention = dict(type=kind, kernel_size=kernel_size)
    return count_classifier(VAN(arch=arch, attention=attention), shape)


def compare_van(
    archs: Iterable[str] = PAPER_ARCHS,
    kinds: Iterable[str] = PAPER_KINDS,
    kernel_sizes: Iterable[int] = PAPER_KERNEL_SIZES,
    shape: tuple[int, int] = (224, 224),
) -> list[dict[str, Any]]:
    """Count each combination (Fig. 3, Fig. 6 and Table XVII of arXiv 2309.01439).

    Shows its progress on stderr.

    Returns:
        Records of ``arch``, ``kind``, ``kernel_size``, ``params`` and ``macs``.
    """
    tasks = [(a, kind, k) for a in archs for kind in kinds for k in kernel_sizes]
    records = []
    for arch, kind, kernel_size in track_iter_progress(tasks, file=sys.stderr):
        count = count_van(arch, kind, kernel_size, shape)
        records.append(
            dict(
                arch=arch,
                kind=kind,
                kernel_size=kernel_size,
                params=count.params,
                macs=count.macs,
            )
        )
    return records


def comparison_rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Lay the records of :func:`compare_van` out: a row per model, a column per kernel size."""
    sizes = sorted({record['kernel_size'] for record in records})
    models = dict.fromkeys((record['arch'], record['kind']) for record in records)
    cells = {
        (r['arch'], r['kind'], r['kernel_size']): f'{r["params"] / 1e6:.3f} / {r["macs"] / 1e9:.3f}'
        for r in records
    }
    header = ['arch', 'attention', *(f'k={size}' for size in sizes)]
    return [header, *([*model, *(cells[(*model, size)] for size in sizes)] for model in models)]


def build_for_counting(cfg: Config) -> nn.Module:
    """Build the detector or segmentor of a config, without its weights, on the meta device."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = revert_sync_batchnorm(unwrapped(MODELS.build(cfg.model)))
    # Not chained: detectors that distil override train() and return nothing.
    model.eval()
    model.to('meta')
    return model


def default_shape(cfg: Config) -> tuple[int, int]:
    """Height and width at which the papers count each task; of mmrotate, a crop of DOTA.

    A detector that pads all images to one square, as YOLOX and RTMDet do, is counted at that.
    """
    steps = {step_name(step): step for step in cfg.get('test_pipeline') or ()}
    if 'Pad' in steps and 'Resize' in steps:
        width, height = steps['Resize']['scale']
        return height, width
    shapes = dict(mmdet=(800, 1280), mmrotate=(1024, 1024), mmpretrain=(224, 224))
    return shapes.get(cfg.get('default_scope'), (512, 512))


def step_name(step: dict) -> str:
    """Bare name of a pipeline step, whose type is a name or a class."""
    kind = step['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def image_channels(model: nn.Module) -> int:
    """Bands of the images of a model: of its preprocessor's mean, else of its first convolution."""
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None and len(mean) > 1:
        return len(mean)
    backbone = getattr(model, 'backbone', model)
    if isinstance(getattr(backbone, 'in_channels', None), int):
        return backbone.in_channels
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            # The stem of YOLOX lays four pixels side by side before it convolves.
            has_focus = any(type(part).__name__ == 'Focus' for part in backbone.modules())
            return module.in_channels // 4 if has_focus else module.in_channels
    return 3


def padded_shape(model: nn.Module, shape: tuple[int, int]) -> tuple[int, int]:
    """Shape after the padding that the model's own preprocessor does."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    divisor = getattr(preprocessor, 'pad_size_divisor', None) or 1
    height, width = (-(-size // divisor) * divisor for size in shape)
    return height, width


def count_part(
    name: str, module: nn.Module, *inputs: Any, remark: str = ''
) -> tuple[PartComplexity, Any]:
    """Count one part; returns the count and what the part returned."""
    macs, outputs = count_macs(module, *inputs)
    return PartComplexity(name, count_params(module), macs, remark), outputs


def count_model(model: nn.Module, shape: tuple[int, int]) -> list[PartComplexity]:
    """Count a detector or segmentor part by part, for one image.

    A two-stage detector's heads are counted for as many regions as its test settings keep at most
    (usually 1000 proposals, and 100 detections for masks), whatever the image shows. A model that
    is made of other parts, as most of those with queries are, is run as a whole on a blank image.

    Args:
        model: What :func:`build_for_counting` returns.
        shape: Height and width of the image, pixels.

    Returns:
        The parts in the order in which data flows, then those that inference does not run.

    Raises:
        ValueError: If the model can be counted in neither way.
    """
    try:
        return count_parts(model, shape)
    # Models with other parts fail in exceptions of their own, each at another place.
    except Exception as by_parts:
        try:
            return count_whole(model, shape)
        except Exception as as_a_whole:
            raise ValueError(
                f'cannot count a {type(model).__name__}: neither part by part '
                f'({first_line(by_parts)}), nor as a whole ({first_line(as_a_whole)})'
            ) from by_parts


def first_line(error: Exception) -> str:
    """Type and first line of an exception."""
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or ["no reason given"])[0]}'


def count_parts(model: nn.Module, shape: tuple[int, int]) -> list[PartComplexity]:
    """Count backbone, neck, dense heads and RoI heads or a transformer, without running the rest.

    Raises:
        ValueError: If the model is not made of these.
    """
    image = meta_input(1, image_channels(model), *padded_shape(model, shape))
    part, features = count_part('backbone', model.backbone, image)
    parts = [part]
    if getattr(model, 'neck', None) is not None:
        part, features = count_part('neck', model.neck, features)
        parts.append(part)
    if hasattr(model, 'forward_transformer'):
        parts += count_transformer(model, features, tuple(image.shape[2:]))
    else:
        parts += [count_part(name, head, features)[0] for name, head in dense_heads(model)]
    if hasattr(model, 'roi_head'):
        parts += count_roi_heads(model)
    return parts + uncounted_parts(model, parts)


def count_whole(model: nn.Module, shape: tuple[int, int]) -> list[PartComplexity]:
    """Run a model on one blank image on the CPU, and count what each of its parts does.

    Its weights are of no account: all are one hundredth, for shapes may depend on what is found.
    """
    padded = padded_shape(model, shape)
    model.requires_grad_(False).to_empty(device='cpu')
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(0.01 if tensor.is_floating_point() else 0)
    image = torch.zeros(1, image_channels(model), *padded)
    told = None if TRACKS_MODULES else model
    with torch.no_grad(), FlopCounterMode(told, display=False) as counter:
        run_whole(model, image)
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    model.to('meta')
    root = type(model).__name__
    called, through_layers, idle = [], [], []
    for name, child in model.named_children():
        prefix, params = f'{root}.{name}', count_params(child)
        if prefix in flops:
            called.append(PartComplexity(name, params, flops[prefix] // 2, 'run as a whole'))
        elif any(other.startswith(f'{prefix}.') for other in flops):
            through_layers.append(PartComplexity(name, params, None))
        elif params:
            idle.append(PartComplexity(name, params, None, 'not counted'))
    # Layers of a head may run inside the decoder, which has counted them by then.
    rest = counter.get_total_flops() // 2 - sum(part.macs for part in called)
    names = ' + '.join(part.name for part in through_layers) or 'between the parts'
    params = sum(part.params for part in through_layers)
    others = [PartComplexity(names, params, rest, 'the rest of the run')] if rest or params else []
    return [*called, *others, *idle]


def run_whole(model: nn.Module, image: torch.Tensor) -> Any:
    """Run a model on a blank image, by the network alone."""
    sample = blank_sample(tuple(image.shape[2:]))
    if hasattr(model, 'encode_decode'):
        # In forward() of a segmentor heads lack what they need: the sample, or the head before.
        return model.encode_decode(image, [sample.metainfo])
    return model(image, [sample], mode='tensor')


def blank_sample(shape: tuple[int, int]) -> BaseDataElement:
    """What a detector or segmentor is told about an image without padding."""
    scale = (1.0, 1.0)
    metainfo = dict(
        img_id=0, img_shape=shape, ori_shape=shape, batch_input_shape=shape, pad_shape=shape
    )
    sample = BaseDataElement(metainfo=dict(metainfo, scale_factor=scale))
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return sample


def count_transformer(
    model: nn.Module, features: Sequence[torch.Tensor], shape: tuple[int, int]
) -> list[PartComplexity]:
    """Count encoder, decoder and head of a DETR and its relatives, for an image without padding.

    Args:
        model: The detector.
        features: The maps of its neck.
        shape: Height and width of the image, pixels.
    """
    encoder_inputs, decoder_inputs = model.pre_transformer(features, [blank_sample(shape)])
    encoder_macs, memory = count_macs(model.forward_encoder, **encoder_inputs)
    queries, head_inputs = model.pre_decoder(**memory)
    decoder_macs, states = count_macs(model.forward_decoder, **decoder_inputs, **queries)
    head_macs, _ = count_macs(model.bbox_head, **head_inputs, **states)
    return [
        PartComplexity('encoder', count_params(model.encoder), encoder_macs),
        PartComplexity('decoder', count_params(model.decoder), decoder_macs),
        PartComplexity('bbox_head', count_params(model.bbox_head), head_macs),
    ]


def dense_heads(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Heads that see the whole feature maps, with their names.

    Raises:
        ValueError: If there is none, or one that is not a single module.
    """
    heads = [
        (name, head) for name in DENSE_HEADS if (head := getattr(model, name, None)) is not None
    ]
    if not heads or any(isinstance(head, nn.ModuleList) for _, head in heads):
        raise ValueError(
            f'cannot count a {type(model).__name__} part by part: it needs a head that sees the '
            f'feature maps, of {", ".join(DENSE_HEADS)}; its parts are '
            f'{", ".join(name for name, _ in model.named_children())}'
        )
    return heads


def count_roi_heads(model: nn.Module) -> list[PartComplexity]:
    """Count the heads that see RoI features, each stage of a cascade for itself.

    Raises:
        ValueError: If the heads share layers that belong to none of them.
    """
    roi_head = model.roi_head
    if getattr(roi_head, 'shared_head', None) is not None:
        raise ValueError(f'cannot count a {type(roi_head).__name__} with a shared_head')
    regions = dict(
        bbox=model.test_cfg['rpn']['max_per_img'], mask=model.test_cfg['rcnn']['max_per_img']
    )
    parts = []
    for kind, number in regions.items():
        heads = as_list(getattr(roi_head, f'{kind}_head', None))
        extractors = as_list(getattr(roi_head, f'{kind}_roi_extractor', None))
        for index, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
            size = extractor.roi_layers[0].output_size
            name = f'roi_head.{kind}_head' + (f'.{index}' if len(heads) > 1 else '')
            inputs = meta_input(number, extractor.out_channels, *size)
            parts.append(count_part(name, head, inputs, remark=f'{number} regions')[0])
    return parts


def as_list(modules: nn.Module | None) -> list[nn.Module]:
    """The modules of a list, a lone module as a list of one."""
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def uncounted_parts(model: nn.Module, parts: Sequence[PartComplexity]) -> list[PartComplexity]:
    """Parameters that belong to none of the counted parts."""
    rest = []
    for name, child in model.named_children():
        counted = sum(part.params for part in parts if part.name.split('.')[0] == name)
        if params := count_params(child) - counted:
            remark = 'training only' if name.startswith('auxiliary') else 'not counted'
            rest.append(PartComplexity(name, params, None, remark))
    return rest


def part_rows(parts: Sequence[PartComplexity]) -> list[list[str]]:
    """Lay the result of :func:`count_model` out, with a header and a total."""
    total = PartComplexity(
        'total', sum(p.params for p in parts), sum(p.macs for p in parts if p.macs is not None)
    )
    rows = [['part', 'parameters', 'multiply-adds', 'remark']]
    for part in (*parts, total):
        macs = '-' if part.macs is None else f'{part.macs / 1e9:.3f} G'
        rows.append([part.name, f'{part.params / 1e6:.3f} M', macs, part.remark])
    return rows


def format_table(rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Align rows, the first of which is the header, into a text or Markdown table.

    >>> print(format_table([['part', 'parameters'], ['neck', '3.2 M']]))
    part  parameters
    ----  ----------
    neck  3.2 M
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ['-' * width for width in widths])
    if markdown:
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return '\n'.join('  '.join(line).rstrip() for line in lines)
