"""What weights are: where in a checkpoint the backbone lies, and which backbone it is.

Everything here reads names and shapes alone, whatever the values may be.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .files import CheckpointError
from .naming import canonical, without_wrappers

GATE = 'attn.spatial_gating_unit.'
# The convolutions that tell the kinds of attention apart: local and dilated one.
KINDS = {
    'LSKA': ('conv0h', 'conv_spatial_h'),
    'LKA': ('conv0', 'conv_spatial'),
    'LSKATrivial': ('conv0h', None),
    'LKATrivial': ('conv0', None),
}
# Kinds that weights can be turned into, and out of: see `mmlska.conversion`.
CONVERTIBLE = ('LKA', 'LSKA')
# Of several places with equally many weights the first of these is the backbone.
USUAL_PREFIXES = ('', 'backbone.')
# What the averages of models that PyTorch and mmengine keep count, beside their weights.
COUNTERS = {'n_averaged', 'steps'}


class Trait(NamedTuple):
    """What weights tell about one option of a model: in words, and as the option's value."""

    text: str
    config: str


class Parts(NamedTuple):
    """A checkpoint, taken apart.

    Attributes:
        backbone (dict): Weights of the backbone, bare, in the names of their codebase.
        outside (dict): The others, under the names that they bear in the file, but for a second
            copy of the backbone.
        prefix (str): What the names of the backbone's weights began with.
    """

    backbone: dict
    outside: dict
    prefix: str


def find_backbone(weights: Mapping, is_name: Callable[[str], object]) -> Parts:
    """Find the backbone's weights, whatever module they lay in.

    Args:
        weights (Mapping): Weights in the names of any codebase.
        is_name (Callable): Whether a name, ours, is that of a weight of the backbone.

    Returns:
        Parts: All weights are ``backbone`` if no name is of one.

    Raises:
        CheckpointError: If equally many lie in two places. The message names them.
    """
    weights = {without_wrappers(key): weights[key] for key in weights if key not in COUNTERS}
    found = Counter(_prefix(key, is_name) for key in weights)
    del found[None]
    most = max(found.values(), default=0)
    places = [prefix for prefix in found if found[prefix] == most]
    usual = [prefix for prefix in USUAL_PREFIXES if prefix in places]
    if len(places) > 1 and not usual:
        raise CheckpointError(
            f'the checkpoint holds the weights of {len(places)} such backbones, under '
            f'{" and ".join(map(repr, places))}: name one as the prefix of init_cfg'
        )
    prefix = usual[0] if usual else next(iter(places), '')
    copies = tuple(place for place in places if place != prefix and not prefix.startswith(place))
    weights = {key: value for key, value in weights.items() if not key.startswith(copies)}
    inside = {key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)}
    outside = {key: weights[key] for key in weights if not key.startswith(prefix)}
    return Parts(inside, outside, prefix)


def _prefix(key: str, is_name: Callable[[str], object]) -> str | None:
    """What stands before the longest end of a key that is a name; None if no end is one."""
    name = canonical(key)
    starts = [0, *(dot.end() for dot in re.finditer(r'\.', name))]
    return next((name[:start] for start in starts if is_name(name[start:])), None)


def recognise_van(weights: Mapping, num_stages: int | None = None) -> dict:
    """The options of the VAN that weights are of, read off their names and shapes.

    Args:
        weights (Mapping): Weights under our names.
        num_stages (int, optional): Stages to look at. Defaults to None: all.

    Returns:
        dict: ``arch``, ``attention`` (None if it is none of the large-kernel family),
        ``layer_scale_init_value`` (0 without layer scales), ``in_channels``, ``patch_sizes`` and
        ``out_indices``; empty if the weights are of no VAN.
    """
    arch = recognise_sizes(weights, num_stages)
    if not arch:
        return {}
    stages = range(len(arch['depths']))
    embeddings = [f'patch_embed{i + 1}.projection.weight' for i in stages]
    return dict(
        arch=arch,
        attention=_attention(weights),
        layer_scale_init_value=1e-2 if 'blocks1.0.layer_scale_1' in weights else 0.0,
        in_channels=_size(weights, embeddings[0], 1),
        patch_sizes=tuple(_size(weights, key, 2) for key in embeddings),
        out_indices=tuple(stages),
    )


def recognise_sizes(weights: Mapping, num_stages: int | None = None) -> dict[str, list]:
    """``embed_dims``, ``depths`` and ``ffn_ratios`` of a backbone named like VAN, else nothing.

    Args:
        weights (Mapping): Weights under our names.
        num_stages (int, optional): Stages to look at. Defaults to None: all.
    """
    dims = _stage_widths(weights)[:num_stages]
    if not dims or 'blocks1.0.mlp.fc1.weight' not in weights:
        return {}
    stages = range(1, len(dims) + 1)
    hidden = [_size(weights, f'blocks{i}.0.mlp.fc1.weight', 0) for i in stages]
    return dict(
        embed_dims=dims,
        depths=[_depth(weights, i) for i in stages],
        ffn_ratios=[_ratio(h, c) for h, c in zip(hidden, dims, strict=True)],
    )


def describe_van(weights: Mapping, num_stages: int, zoo: Mapping[str, Mapping]) -> dict[str, Trait]:
    """What the names and shapes of a VAN's weights tell about it, in words.

    Args:
        weights (Mapping): Weights under our names.
        num_stages (int): Stages to look at.
        zoo (Mapping): Named architectures.

    Returns:
        dict[str, Trait]: By option of the backbone; empty if the weights are of no VAN.
    """
    options = recognise_van(weights, num_stages)
    if not options:
        return {}
    scale, bands = options['layer_scale_init_value'], options['in_channels']
    return {
        'attention': describe_attention(options['attention']),
        'arch': describe_arch(options['arch'], zoo),
        'layer_scale_init_value': Trait(f'{"" if scale else "no "}layer scales', repr(scale)),
        'in_channels': Trait(f'images of {bands} channels', str(bands)),
    }


def describe_arch(arch: dict, zoo: Mapping[str, Mapping]) -> Trait:
    """Name and sizes of an architecture; one with fewer stages goes by the first that fits."""
    stages = len(arch['depths'])
    sizes = ', '.join(f'{key}={values}' for key, values in arch.items())
    for name, settings in zoo.items():
        if all(settings[key][:stages] == values for key, values in arch.items()):
            return Trait(f'VAN-{name} ({sizes})', repr(name))
    return Trait(f'a VAN with {sizes}', f'dict({sizes})')


def describe_attention(attention: dict | None) -> Trait:
    """Kind, receptive field and largest kernel of an attention."""
    if attention is None:
        return Trait('another attention', 'dict(type=...)')
    kind, kernel_size, dilation = (attention.get(k) for k in ('type', 'kernel_size', 'dilation'))
    size = kernel_size if dilation is None else (kernel_size + 1) // dilation - 1
    shape = f'1x{size}' if kind.startswith('LSKA') else f'{size}x{size}'
    dilated = '' if dilation is None else ' dilated'
    options = ', '.join(f'{key}={value!r}' for key, value in attention.items())
    return Trait(f'{kind} kernel {kernel_size} ({shape}{dilated})', f'dict({options})')


def name_attention(attention: Mapping) -> str:
    """Kind, kernel size and dilation of an attention, in words."""
    return f'{describe_attention(attention).text} with dilation {attention["dilation"]}'


def is_convertible(attention: Mapping | None) -> bool:
    """Whether weights can be turned into, and out of, an attention."""
    return attention is not None and attention['type'] in CONVERTIBLE


def shape_of(value: object) -> tuple[int, ...]:
    """The shape of a weight; that of a number for whatever has none."""
    if getattr(value, 'is_nested', False):
        return ()
    shape = getattr(value, 'shape', ())
    return tuple(shape) if isinstance(shape, (tuple, list)) else ()


def _size(weights: Mapping, key: str, axis: int) -> int:
    shape = shape_of(weights.get(key))
    return shape[axis] if len(shape) > axis else 0


def _stage_widths(weights: Mapping) -> list[int]:
    widths = []
    while (key := f'patch_embed{len(widths) + 1}.projection.weight') in weights:
        widths.append(_size(weights, key, 0))
    return widths


def _depth(weights: Mapping, stage: int) -> int:
    indices = re.compile(rf'blocks{stage}\.(\d+)\.')
    return 1 + max((int(m[1]) for m in map(indices.match, weights) if m), default=-1)


def _ratio(hidden: int, channels: int) -> int | float:
    ratio = hidden / channels if channels else 0
    return int(ratio) if ratio == int(ratio) else ratio


def _attention(weights: Mapping) -> dict | None:
    # A block of the first stage stands for all: VAN has one attention config.
    gate = f'blocks1.0.{GATE}'
    names = [key for key in weights if key.startswith(gate) and key.endswith('.weight')]
    # A kernel in a row is 1 x k, one in a column k x 1.
    sizes = {key[len(gate) : -len('.weight')]: max(shape_of(weights[key])[2:], default=0)
             for key in names}  # fmt: skip
    for kind, (local, dilated) in KINDS.items():
        if local in sizes and dilated is None:
            return dict(type=kind, kernel_size=sizes[local])
        if sizes.get(local) and sizes.get(dilated):
            dilation = (sizes[local] + 1) // 2
            kernel_size = sizes[local] + dilation * (sizes[dilated] - 1)
            return dict(type=kind, kernel_size=kernel_size, dilation=dilation)
    return None
