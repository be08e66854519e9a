import re
from collections.abc import Mapping, Sized
from typing import NamedTuple

GATE = 'attn.spatial_gating_unit.'
# The convolutions that tell the kinds of attention apart: local and dilated one.
KINDS = {
    'LSKA': ('conv0h', 'conv_spatial_h'),
    'LKA': ('conv0', 'conv_spatial'),
    'LSKATrivial': ('conv0h', None),
    'LKATrivial': ('conv0', None),
}


class Trait(NamedTuple):
    """What weights tell about one option of a model: in words, and as the option's value."""

    text: str
    config: str


def recognise_van(weights: Mapping, num_stages: int | None = None) -> dict:
    """The options of the VAN that weights are of, read off their names and shapes.

    Args:
        weights (Mapping): Weights under our names.
        num_stages (int, optional): Stages to look at. Defaults to None: all.

    Returns:
        dict: ``arch``, ``attention`` (None if it is none of the large-kernel family),
        ``layer_scale_init_value`` (0 without layer scales) and ``out_indices``; empty if the
        weights are of no VAN.
    """
    arch = recognise_sizes(weights, num_stages)
    if not arch:
        return {}
    return dict(
        arch=arch,
        attention=_attention(weights),
        layer_scale_init_value=1e-2 if 'blocks1.0.layer_scale_1' in weights else 0.0,
        out_indices=tuple(range(len(arch['depths']))),
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
    hidden = [weights.get(f'blocks{i}.0.mlp.fc1.weight') for i in stages]
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
    scale = options['layer_scale_init_value']
    return {
        'attention': describe_attention(options['attention']),
        'arch': describe_arch(options['arch'], zoo),
        'layer_scale_init_value': Trait(f'{"" if scale else "no "}layer scales', repr(scale)),
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


def _stage_widths(weights: Mapping) -> list[int]:
    widths = []
    while (key := f'patch_embed{len(widths) + 1}.projection.weight') in weights:
        widths.append(len(weights[key]))
    return widths


def _depth(weights: Mapping, stage: int) -> int:
    indices = re.compile(rf'blocks{stage}\.(\d+)\.')
    return 1 + max((int(m[1]) for m in map(indices.match, weights) if m), default=-1)


def _ratio(hidden: Sized | None, channels: int) -> int | float:
    ratio = 0 if hidden is None else len(hidden) / channels
    return int(ratio) if ratio == int(ratio) else ratio


def _attention(weights: Mapping) -> dict | None:
    # A block of the first stage stands for all: VAN has one attention config.
    gate = f'blocks1.0.{GATE}'
    sizes = {
        key[len(gate) : -len('.weight')]: value.shape[-1]
        for key, value in weights.items()
        if key.startswith(gate) and key.endswith('.weight')
    }
    for kind, (local, dilated) in KINDS.items():
        if local in sizes and dilated is None:
            return dict(type=kind, kernel_size=sizes[local])
        if local in sizes and dilated in sizes:
            dilation = (sizes[local] + 1) // 2
            kernel_size = sizes[local] + dilation * (sizes[dilated] - 1)
            return dict(type=kind, kernel_size=kernel_size, dilation=dilation)
    return None
