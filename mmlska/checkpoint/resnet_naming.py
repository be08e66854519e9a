"""Names of ResNets with ECA, and what such weights are of.

The official ECA-ResNet (github.com/BangguWu/ECANet) has torchvision's names and ``eca`` for its
layers: those of mmdet's and mmseg's ResNet with :class:`mmlska.layers.ECA` at ``after_conv3``.
timm calls the layers ``se``, and the deep stem of its ResNet-D otherwise. Both are checked against
names that the foreign classes have written; they lie in ``tests/data/foreign_names``.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial

from mmlska.layers.official_names import rename

from .naming import rename_all
from .recognition import shape_of

# An ECA layer has one 1-D convolution; a squeeze-and-excitation block has fc1 and fc2.
ECA_OF_TIMM = (r'\.se\.conv\.weight$', '.eca.conv.weight')
DEEP_STEM_OF_TIMM = (
    (r'^conv1\.(\d)\.', r'stem.\1.'),
    # The norm after the last of three convolutions.
    (r'^bn1\.', 'stem.7.'),
)
OF_TIMM = re.compile(r'conv1\.\d\.\w+|layer\d\.\d+\.se\.conv\.weight')
BLOCK = re.compile(r'layer(\d)\.(\d+)\.')
DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
DEEP_STEM = [32, 32, 64]
TIMM_BACKBONE = (
    "use timm's model itself: type='TIMMBackbone' of mmseg, or 'mmpretrain.TIMMBackbone' in mmdet"
)


def is_of_timm(keys: Iterable[str]) -> bool:
    """Whether names are those of timm's ResNet where it differs from mmdet's."""
    return any(map(OF_TIMM.fullmatch, keys))


def to_resnet(weights: Mapping) -> dict:
    """Weights of a ResNet under the names of mmdet's and mmseg's.

    Raises:
        CheckpointError: If two names stand for the same weight.
    """
    is_deep = any(key.startswith('conv1.0.') for key in weights)
    rules = [ECA_OF_TIMM, *(DEEP_STEM_OF_TIMM if is_deep else ())]
    return rename_all(weights, partial(rename, rules=rules))


def count_blocks(weights: Mapping) -> tuple[int, ...]:
    """Blocks of each stage of a ResNet, by its names; nothing if they are of no ResNet."""
    found: dict[int, int] = {}
    for match in filter(None, map(BLOCK.match, weights)):
        stage, block = int(match[1]), int(match[2])
        found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(found[stage] for stage in sorted(found))


def eca_kernels(weights: Mapping) -> list[int]:
    """Kernel size of ECA in each stage of a ResNet; nothing if it has none."""
    names = [f'layer{stage}.0.eca.conv.weight' for stage in range(1, 5)]
    return [shape_of(weights[name])[-1] for name in names if shape_of(weights.get(name))]


def explain_resnet(weights: Mapping) -> str:
    """How to build the ResNet that weights are of, in one sentence.

    Args:
        weights (Mapping): Weights under mmdet's names.
    """
    blocks = count_blocks(weights)
    if not blocks:
        return f'The checkpoint is of no ResNet: {TIMM_BACKBONE}.'
    peculiar = list(peculiarities(weights, blocks))
    if peculiar:
        return (
            f'The checkpoint is of a ResNet that mmdet and mmseg do not have '
            f'({", ".join(peculiar)}): {TIMM_BACKBONE}.'
        )
    kind = 'ResNetV1d' if 'stem.0.weight' in weights else 'ResNet'
    options = [f'type={kind!r}', f'depth={DEPTHS[blocks]}']
    if kernels := eca_kernels(weights):
        options.append(
            "plugins=[dict(cfg=dict(type='mmlska.ECA', kernel_size=K), stages=..., "
            f"position='after_conv3')] with K={', '.join(map(str, kernels))} by stage"
        )
    return f'Build the backbone with {", ".join(options)}.'


def peculiarities(weights: Mapping, blocks: tuple[int, ...]) -> Iterable[str]:
    """In what a ResNet differs from all that mmdet and mmseg can build, in words."""
    if blocks not in DEPTHS or 'layer1.0.conv3.weight' not in weights:
        kind = 'bottlenecks' if 'layer1.0.conv3.weight' in weights else 'basic blocks'
        yield f'{", ".join(map(str, blocks))} {kind}'
    is_deep = 'stem.0.weight' in weights
    stem = [shape_of(weights.get(f'stem.{i}.weight'))[:1] for i in (0, 3, 6)] if is_deep else []
    if is_deep and stem != [(width,) for width in DEEP_STEM]:
        yield f'a stem of {", ".join(str(*width) for width in stem)} channels'
    # The first of a downsampling Sequential is a pooling without weights, or the convolution.
    has_pooling = len(shape_of(weights.get('layer2.0.downsample.1.weight'))) == 4
    if has_pooling and not is_deep:
        yield 'pooling before downsampling behind a plain stem'
    if shape_of(weights.get('layer1.0.conv1.weight'))[:1] not in ((64,), ()):
        yield 'pruned or widened bottlenecks'
