"""Names of the same weights in other codebases.

Our names are those of mmpretrain's VAN, and for the four convolutions of LSKA those of the official
classification code, so a scheme is told by the few names in which it differs.
"""

import re
from collections.abc import Mapping

from mmlska.layers.large_kernel_attention import OFFICIAL_DETECTION_NAMES
from mmlska.layers.official_names import rename, rename_keys

# (pattern in a foreign key, replacement) for the official LSKA code (classification, detection and
# segmentation) and the original VAN code. No pattern matches a key of ours.
TO_MMLSKA = [
    (r'\bblock(\d+)\.', r'blocks\1.'),
    (r'\b(patch_embed\d+)\.proj\.', r'\1.projection.'),
    (r'\bmlp\.dwconv\.dwconv\.', 'mlp.dwconv.'),
    *OFFICIAL_DETECTION_NAMES,
]

# Naming schemes that weights can be written in, as replacements in a key of ours.
NAMINGS = {
    'mmlska': [],
    'mmpretrain': [(r'^', 'backbone.')],
    'official': [
        (r'\bblocks(\d+)\.', r'block\1.'),
        (r'\b(patch_embed\d+)\.projection\.', r'\1.proj.'),
        (r'\bmlp\.dwconv\.', 'mlp.dwconv.dwconv.'),
    ],
    'official-detection': [
        (r'\bconv0([hv])\.', r'DW_conv_\1.'),
        (r'\bconv_spatial_([hv])\.', r'DW_D_conv_\1.'),
    ],
}

VAN_KEY = re.compile(
    r'patch_embed\d+\.(projection|norm)\.\w+'
    r'|blocks\d+\.\d+\.(layer_scale_[12]|norm[12]\.\w+|attn\.proj_[12]\.\w+'
    r'|attn\.spatial_gating_unit\.[\w.]+|mlp\.(fc1|dwconv|fc2)\.\w+|after_(attention|ffn)\.[\w.]+)'
    r'|norm\d+\.\w+|after_stage\d+\.[\w.]+'
)
HEAD_KEY = re.compile(r'head\.[\w.]+')

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


def canonical(key: str) -> str:
    """The name that mmlska gives to a weight of another codebase."""
    return rename(key, TO_MMLSKA)


def to_mmlska(state_dict: Mapping) -> dict:
    """A copy of the weights under our names; the inverse of :func:`to_naming`."""
    renamed = dict(state_dict)
    rename_keys(renamed, '', TO_MMLSKA)
    return renamed


def to_naming(state_dict: Mapping, naming: str) -> dict:
    """A copy of weights under our names with the names of another codebase.

    Args:
        state_dict (Mapping): Weights under our names.
        naming (str): 'mmlska', 'mmpretrain', 'official' (the classification code of VAN and LSKA)
            or 'official-detection' (its detection and segmentation code).

    Raises:
        ValueError: If the naming is unknown.
    """
    if naming not in NAMINGS:
        raise ValueError(f'naming {naming!r} is unknown: allowed are {", ".join(NAMINGS)}')
    return {rename(key, NAMINGS[naming]): value for key, value in state_dict.items()}


def recognise_naming(keys: list[str]) -> str | None:
    """The codebase whose names the keys of a bare VAN are; None for any other model.

    The original VAN code counts as official classification; mmpretrain's names are ours.
    """
    backbone = [key for key in keys if not HEAD_KEY.fullmatch(key)]
    if not backbone or not all(VAN_KEY.fullmatch(canonical(key)) for key in backbone):
        return None
    if any(re.match(r'block\d+\.', key) for key in backbone):
        return 'official classification'
    if any('.DW_conv_h.' in key for key in backbone):
        return 'official detection'
    return 'mmlska or mmpretrain'


def is_backbone(keys: list[str]) -> bool:
    """Whether the keys are those of a bare backbone of ours, in the names of any codebase."""
    if recognise_naming(keys) is not None:
        return True
    names = [canonical(key) for key in keys]
    return any(
        all(pattern.fullmatch(name) for name in names) and any(mark in name for name in names)
        for pattern, mark in OTHER_BACKBONES.values()
    )
