import re
from collections.abc import Mapping
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
    """What weights tell about one option of the model: in words, and as the option's value."""

    text: str
    config: str


def describe_van(weights: Mapping, num_stages: int, zoo: Mapping[str, Mapping]) -> dict[str, Trait]:
    """What the names and shapes of a VAN's weights tell about it.

    Args:
        weights (Mapping): Weights under our names.
        num_stages (int): How many stages to look at.
        zoo (Mapping): Named architectures.

    Returns:
        dict[str, Trait]: By option of :class:`VAN`; empty if the weights are of no VAN.
    """
    dims = _stage_widths(weights)[:num_stages]
    if not dims:
        return {}
    depths = [_depth(weights, i) for i in range(1, len(dims) + 1)]
    scales = any(key.endswith('.layer_scale_1') for key in weights)
    return {
        'attention': _describe_attention(weights),
        'arch': _describe_arch(dims, depths, zoo),
        'layer_scale_init_value': Trait('layer scales', '1e-2')
        if scales
        else Trait('no layer scales', '0'),
    }


def _stage_widths(weights: Mapping) -> list[int]:
    widths = []
    while (key := f'patch_embed{len(widths) + 1}.projection.weight') in weights:
        widths.append(len(weights[key]))
    return widths


def _depth(weights: Mapping, stage: int) -> int:
    indices = re.compile(rf'blocks{stage}\.(\d+)\.')
    return 1 + max((int(m[1]) for m in map(indices.match, weights) if m), default=-1)


def _describe_arch(dims: list[int], depths: list[int], zoo: Mapping[str, Mapping]) -> Trait:
    stages = len(dims)
    fitting = [
        name
        for name, arch in zoo.items()
        if (arch['embed_dims'][:stages], arch['depths'][:stages]) == (dims, depths)
    ]
    sizes = f'embed_dims={dims}, depths={depths}'
    if fitting:
        return Trait(f'VAN-{fitting[0]} ({sizes})', repr(fitting[0]))
    return Trait(f'a VAN with {sizes}', f'dict({sizes}, ffn_ratios=...)')


def _describe_attention(weights: Mapping) -> Trait:
    # A block of the first stage stands for all: VAN has one attention config.
    gate = f'blocks1.0.{GATE}'
    shapes = {
        key[len(gate) : -len('.weight')]: tuple(value.shape[-2:])
        for key, value in weights.items()
        if key.startswith(gate) and key.endswith('.weight')
    }
    for kind, (local, dilated) in KINDS.items():
        if local in shapes and (dilated in shapes or dilated is None):
            return _describe_kernel(kind, shapes[local], shapes.get(dilated))
    return Trait(f'an attention with {", ".join(shapes) or "no convolutions"}', 'dict(type=...)')


def _describe_kernel(kind: str, local: tuple, dilated: tuple | None) -> Trait:
    if dilated is None:
        kernel_size, dilation, shape = local[1], '', f'{local[0]}x{local[1]}'
    else:
        d = (local[1] + 1) // 2
        kernel_size, dilation = local[1] + d * (dilated[1] - 1), f', dilation={d}'
        shape = f'{dilated[0]}x{dilated[1]} dilated'
    return Trait(
        f'{kind} kernel {kernel_size} ({shape})',
        f'dict(type={kind!r}, kernel_size={kernel_size}{dilation})',
    )
