"""Public weights that our backbones take: where they lie, whose they are, and under which licence.

Nothing of it is ours, and nothing is fetched before somebody asks for it by name. Accuracies stand
in the READMEs of the configs. Addresses as their publishers state them, read in November 2026.
"""

from typing import NamedTuple

OPENMMLAB = 'https://download.openmmlab.com'
HUGGING_FACE = 'https://huggingface.co'
VAN_LICENCE = 'Apache-2.0; its authors ask to be contacted before commercial use'


class KnownWeights(NamedTuple):
    """Weights that a name stands for.

    Attributes:
        url (str): Address of the file.
        publisher (str): Who trained or converted them.
        licence (str): What the publisher states.
        sha256 (str, optional): Digits that the file's hash begins with, where they are known.
    """

    url: str
    publisher: str
    licence: str
    sha256: str | None = None


def _of_authors(arch: str, file: str) -> KnownWeights:
    url = f'{HUGGING_FACE}/Visual-Attention-Network/VAN-{arch}-original/resolve/main/{file}'
    return KnownWeights(url, 'the authors of VAN', VAN_LICENCE)


def _of_openmmlab(path: str) -> KnownWeights:
    # OpenMMLab's names end in the first digits of the hash.
    digits = path.removesuffix('.pth').rpartition('-')[2]
    return KnownWeights(f'{OPENMMLAB}/{path}', 'OpenMMLab', 'Apache-2.0', digits)


def _of_transformers(arch: str) -> KnownWeights:
    url = f'{HUGGING_FACE}/Visual-Attention-Network/van-{arch}/resolve/main/pytorch_model.bin'
    return KnownWeights(url, 'Hugging Face, converted from the authors', 'Apache-2.0')


def _of_timm(width: str) -> KnownWeights:
    url = f'{HUGGING_FACE}/timm/ghostnetv2_{width}.in1k/resolve/main/model.safetensors'
    return KnownWeights(url, 'timm, from the authors of GhostNetV2', 'Apache-2.0')


MMPRETRAIN = 'mmclassification/v0/van/van'
MMSEG = 'mmsegmentation/v0.5/van_3rdparty/van'
KNOWN_WEIGHTS = {
    'van-b0': _of_authors('Tiny', 'van_tiny_754.pth.tar'),
    'van-b1': _of_authors('Small', 'van_small_811.pth.tar'),
    'van-b2': _of_authors('Base', 'van_base_828.pth.tar'),
    'van-b3': _of_authors('Large', 'van_large_839.pth.tar'),
    'van-b4-in22k': _of_openmmlab(f'{MMSEG}-b4-in22k_3rdparty_20230522-5e31cafb.pth'),
    'van-b5-in22k': _of_openmmlab(f'{MMSEG}-b5-in22k_3rdparty_20230522-b26134d7.pth'),
    'van-b6-in22k': _of_openmmlab(f'{MMSEG}-b6-in22k_3rdparty_20230522-5e5172a3.pth'),
    'van-b0-mmpretrain': _of_openmmlab(f'{MMPRETRAIN}-tiny_8xb128_in1k_20220501-385941af.pth'),
    'van-b1-mmpretrain': _of_openmmlab(f'{MMPRETRAIN}-small_8xb128_in1k_20220501-17bc91aa.pth'),
    'van-b2-mmpretrain': _of_openmmlab(f'{MMPRETRAIN}-base_8xb128_in1k_20220501-6a4cc31b.pth'),
    'van-b3-mmpretrain': _of_openmmlab(f'{MMPRETRAIN}-large_8xb128_in1k_20220501-f212ba21.pth'),
    'van-b0-transformers': _of_transformers('tiny'),
    'van-b1-transformers': _of_transformers('small'),
    'van-b2-transformers': _of_transformers('base'),
    'van-b3-transformers': _of_transformers('large'),
    'ghostnetv2-1.0': _of_timm('100'),
    'ghostnetv2-1.3': _of_timm('130'),
    'ghostnetv2-1.6': _of_timm('160'),
}
# These lie behind pages that only a person can pass.
BY_HAND = {
    'van-lska': 'the page that https://github.com/StevenLauHKHK/Large-Separable-Kernel-Attention '
    'links to (kernel size 23)',
    'container': 'the page that https://github.com/allenai/container links to',
}
