"""Names of the same weights in other codebases.

Our names are those of mmpretrain's VAN, and for the convolutions of the attentions those of the
official classification code, so a naming is told by the few names in which it differs.

Every naming is checked against names and shapes that the foreign class has written itself; they lie
in ``tests/data/foreign_names``, each with its origin:

=======================  =========================================================================
naming                   checked against
=======================  =========================================================================
mmpretrain               mmpretrain's VAN, tiny to large, inside its ImageClassifier
transformers             transformers' VanForImageClassification, tiny to large
official classification  VAN-Classification's VAN with LKA, LSKA's classification code with LSKA
official detection       LSKA's detection code; its segmentation code has the same names
GhostNetV2               timm's ghostnetv2_100, _130 and _160; the official code has the same names
ECA                      the official eca_layer and timm's EcaModule
CONTAINER                the official MixBlock; no release holds the names of a whole model
SCP                      its names alone, as its code tells them; nothing of it is copied
=======================  =========================================================================
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from mmlska.layers.large_kernel_attention import OFFICIAL_DETECTION_NAMES
from mmlska.layers.official_names import Rules, rename

from .files import CheckpointError

MMPRETRAIN: Rules = [
    (r'\bDW_conv\.', 'conv0.'),
    (r'\bDW_D_conv\.', 'conv_spatial.'),
]
OFFICIAL_CLASSIFICATION: Rules = [
    (r'\bblock(\d+)\.', r'blocks\1.'),
    (r'\b(patch_embed\d+)\.proj\.', r'\1.projection.'),
    (r'\bmlp\.dwconv\.dwconv\.', 'mlp.dwconv.'),
]
# transformers counts stages from 0; "normomalization" is its own spelling.
TRANSFORMERS: Rules = [
    (r'\b(?:van\.)?encoder\.stages\.(\d+)\.', lambda m: f'stages{int(m[1]) + 1}.'),
    (r'\bstages(\d+)\.embeddings\.convolution\.', r'patch_embed\1.projection.'),
    (r'\bstages(\d+)\.embeddings\.normalization\.', r'patch_embed\1.norm.'),
    (r'\bstages(\d+)\.normalization\.', r'norm\1.'),
    (r'\bstages(\d+)\.layers\.', r'blocks\1.'),
    (r'\bpre_normomalization\.', 'norm1.'),
    (r'\bpost_normalization\.', 'norm2.'),
    (r'\battention\.pre_projection\.conv\.', 'attn.proj_1.'),
    (r'\battention\.post_projection\.', 'attn.proj_2.'),
    (r'\battention\.attention_layer\.attention\.', 'attn.spatial_gating_unit.'),
    (r'\bspatial_gating_unit\.depth_wise\.', 'spatial_gating_unit.conv0.'),
    (r'\bspatial_gating_unit\.depth_wise_dilated\.', 'spatial_gating_unit.conv_spatial.'),
    (r'\bspatial_gating_unit\.point_wise\.', 'spatial_gating_unit.conv1.'),
    (r'\battention_scaling\.weight$', 'layer_scale_1'),
    (r'\bmlp_scaling\.weight$', 'layer_scale_2'),
    (r'\bmlp\.in_dense\.', 'mlp.fc1.'),
    (r'\bmlp\.depth_wise\.', 'mlp.dwconv.'),
    (r'\bmlp\.out_dense\.', 'mlp.fc2.'),
]

# Patterns in a foreign key and their replacements. No pattern matches a key of ours, and files that
# mix two namings are about: all of them are applied to every foreign key.
TO_MMLSKA: Rules = [
    *MMPRETRAIN,
    *OFFICIAL_CLASSIFICATION,
    *OFFICIAL_DETECTION_NAMES,
    *TRANSFORMERS,
]

FOREIGN = re.compile('|'.join(pattern for pattern, _ in TO_MMLSKA))

# DistributedDataParallel and DataParallel put theirs before a name; torch.compile, FSDP and
# recomputation put theirs anywhere.
WRAPPERS = re.compile(
    r'^(?:module\.)+|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)

# A name that only one codebase has, by its title; the first that is found tells the naming. The
# original VAN code counts as official classification.
MARKS = {
    'transformers': re.compile(r'\bencoder\.stages\.\d+\.'),
    'official classification': re.compile(r'\bblock\d+\.'),
    'official detection': re.compile(r'\.DW_conv_[hv]\.'),
    'mmpretrain': re.compile(r'\.DW_conv\.'),
}
OURS = 'mmlska'

# Stage norms of these have another epsilon than those of the official classification code.
STAGE_NORM_EPS = {'official detection': 1e-5, 'mmpretrain': 1e-5}


def _stage_of_transformers(rest: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f'van.encoder.stages.{int(match[1]) - 1}.{rest}'


# Naming schemes that weights can be written in, as replacements in a key of ours.
NAMINGS: dict[str, Rules] = {
    'mmlska': [],
    'mmpretrain': [
        (r'\bconv0\.', 'DW_conv.'),
        (r'\bconv_spatial\.', 'DW_D_conv.'),
        (r'^', 'backbone.'),
    ],
    'official': [
        (r'\bblocks(\d+)\.', r'block\1.'),
        (r'\b(patch_embed\d+)\.projection\.', r'\1.proj.'),
        (r'\bmlp\.dwconv\.', 'mlp.dwconv.dwconv.'),
    ],
    'official-detection': [
        (r'\bconv0([hv])\.', r'DW_conv_\1.'),
        (r'\bconv_spatial_([hv])\.', r'DW_D_conv_\1.'),
    ],
    'transformers': [
        (r'^patch_embed(\d+)\.projection\.', _stage_of_transformers('embeddings.convolution.')),
        (r'^patch_embed(\d+)\.norm\.', _stage_of_transformers('embeddings.normalization.')),
        (r'^norm(\d+)\.', _stage_of_transformers('normalization.')),
        (r'^blocks(\d+)\.', _stage_of_transformers('layers.')),
        (r'\.norm1\.', '.pre_normomalization.'),
        (r'\.norm2\.', '.post_normalization.'),
        (r'\.attn\.proj_1\.', '.attention.pre_projection.conv.'),
        (r'\.attn\.proj_2\.', '.attention.post_projection.'),
        (r'\.attn\.spatial_gating_unit\.', '.attention.attention_layer.attention.'),
        (r'\.attention\.conv0\.', '.attention.depth_wise.'),
        (r'\.attention\.conv_spatial\.', '.attention.depth_wise_dilated.'),
        (r'\.attention\.conv1\.', '.attention.point_wise.'),
        (r'\.layer_scale_1$', '.attention_scaling.weight'),
        (r'\.layer_scale_2$', '.mlp_scaling.weight'),
        (r'\.mlp\.fc1\.', '.mlp.in_dense.'),
        (r'\.mlp\.dwconv\.', '.mlp.depth_wise.'),
        (r'\.mlp\.fc2\.', '.mlp.out_dense.'),
    ],
}
SEPARABLE = re.compile(r'\.spatial_gating_unit\.conv0h\.')

VAN_KEY = re.compile(
    r'patch_embed\d+\.(projection|norm)\.\w+'
    r'|blocks\d+\.\d+\.(layer_scale_[12]|norm[12]\.\w+|attn\.proj_[12]\.\w+'
    r'|attn\.spatial_gating_unit\.[\w.]+|mlp\.(fc1|dwconv|fc2)\.\w+|after_(attention|ffn)\.[\w.]+)'
    r'|norm\d+\.\w+|after_stage\d+\.[\w.]+'
)
# The classifier of the official code, of mmpretrain, of torchvision, and of transformers with a
# norm that it never runs.
HEAD_KEY = re.compile(r'head\.[\w.]+|(?:classifier|fc)\.\w+|(?:van\.)?layernorm\.\w+')

# The other backbones, with their classifiers: what every key matches, and a part of some key that
# their nearest relatives, GhostNet and UniFormer, do not have.
OTHER_BACKBONES = {
    'GhostNetV2': (
        re.compile(
            r'conv_stem\.weight|bn1\.\w+|(conv_head|classifier)\.\w+'
            r'|blocks\.\d+\.\d+\.((conv_dw|bn_dw|conv|bn1|se\.conv_(reduce|expand)|shortcut\.\d)\.\w+'
            r'|ghost[12]\.(primary_conv|cheap_operation|short_conv)\.\d\.\w+)'
        ),
        '.short_conv.',
    ),
    'CONTAINER': (
        re.compile(
            r'patch_embed\d+\.(projection|norm)\.\w+|(norm|head)\.\w+'
            r'|blocks\d+\.\d+\.(sa_weight|(pos_embed|norm[12]|conv[12]?|attn|mlp\.fc[12])\.\w+)'
        ),
        '.sa_weight',
    ),
}
# Share of names from which on a file is taken for one of a backbone, be it damaged.
NEARLY = 0.9
# The weights by which a place in a larger model is known to be one of our backbones.
MARKED = re.compile(
    r'(.*?)blocks\d*\.\d+\.(attn\.spatial_gating_unit\.|\d+\.ghost[12]\.short_conv\.|sa_weight)'
)


def without_wrappers(key: str) -> str:
    """A name without what torch's wrappers of modules put into it."""
    return WRAPPERS.sub('', key)


@lru_cache(maxsize=8192)
def canonical(key: str) -> str:
    """The name that mmlska gives to a weight of another codebase."""
    return rename(key, TO_MMLSKA) if FOREIGN.search(key) else key


def to_mmlska(state_dict: Mapping) -> dict:
    """A copy of the weights under our names; the inverse of :func:`to_naming`.

    Raises:
        CheckpointError: If two names stand for the same weight.
    """
    return rename_all(state_dict, canonical)


def rename_all(weights: Mapping, name_of: Callable[[str], str]) -> dict:
    """A copy of the weights, each under what a function makes of its name.

    Raises:
        CheckpointError: If two names stand for the same weight.
    """
    renamed = {}
    for key, value in weights.items():
        name = name_of(key)
        if name in renamed:
            raise CheckpointError(f'the checkpoint holds {name!r} twice, once as {key!r}')
        renamed[name] = value
    return renamed


def to_naming(state_dict: Mapping, naming: str) -> dict:
    """A copy of weights under our names with the names of another codebase.

    Args:
        state_dict (Mapping): Weights under our names.
        naming (str): 'mmlska', 'mmpretrain', 'transformers', 'official' (the classification code
            of VAN and LSKA) or 'official-detection' (its detection and segmentation code).

    Raises:
        ValueError: If the naming is unknown, or its codebase has no such attention.
    """
    if naming not in NAMINGS:
        raise ValueError(f'naming {naming!r} is unknown: allowed are {", ".join(NAMINGS)}')
    if naming == 'transformers' and any(map(SEPARABLE.search, state_dict)):
        raise ValueError(
            f'naming {naming!r} has names for LKA alone, and these weights are of LSKA: '
            'allowed are mmlska, official and official-detection'
        )
    return {rename(key, NAMINGS[naming]): value for key, value in state_dict.items()}


def naming_of(keys: list[str]) -> str:
    """The codebase whose names the keys of a VAN are, as :data:`MARKS` tells them."""
    found = (naming for naming, mark in MARKS.items() if any(map(mark.search, keys)))
    return next(found, OURS)


def recognise_naming(keys: list[str]) -> str | None:
    """The codebase whose names the keys of a bare VAN are; None for any other model."""
    backbone = [key for key in keys if not HEAD_KEY.fullmatch(key)]
    if not backbone or not all(VAN_KEY.fullmatch(canonical(key)) for key in backbone):
        return None
    return naming_of(backbone)


def is_backbone(keys: list[str]) -> bool:
    """Whether the keys are those of a bare backbone of ours, in the names of any codebase."""
    if recognise_naming(keys) is not None:
        return True
    names = [canonical(key) for key in keys]
    return any(
        all(pattern.fullmatch(name) for name in names) and any(mark in name for name in names)
        for pattern, mark in OTHER_BACKBONES.values()
    )


def is_nearly_backbone(keys: list[str]) -> bool:
    """Whether the keys are those of a bare backbone of ours, but for a few, which loading names.

    MSCAN of SegNeXt has nearly the names of VAN too, but for its stem.
    """
    names = [canonical(key) for key in keys if not HEAD_KEY.fullmatch(key)]
    for pattern, mark in [(VAN_KEY, 'patch_embed1.projection.'), *OTHER_BACKBONES.values()]:
        fitting = [name for name in names if pattern.fullmatch(name)]
        if len(fitting) >= NEARLY * len(names) and any(mark in name for name in fitting):
            return True
    return False


def find_places(keys: list[str]) -> list[str]:
    """What the names of our backbones begin with in the weights of a larger model."""
    found = filter(None, (MARKED.match(canonical(key)) for key in keys))
    places = [
        place
        for place in dict.fromkeys(match[1] for match in found)
        if is_nearly_backbone([key.removeprefix(place) for key in keys if key.startswith(place)])
    ]
    # What lies inside another is one of the few names there that belong to nothing.
    return [
        place
        for place in places
        if not any(place.startswith(other) for other in places if other != place)
    ]
