"""Writes the names and shapes that foreign classes give to their weights, one file a model.

Run once for each package, in an environment that has it: ``python write_names.py mmpretrain``. Only
names and shapes are written, no weights; every file says which class of which version wrote it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from torch import nn

SIZES = {
    'tiny': ([32, 64, 160, 256], [3, 3, 5, 2]),
    'small': ([64, 128, 320, 512], [2, 2, 4, 2]),
    'base': ([64, 128, 320, 512], [3, 3, 12, 3]),
    'large': ([64, 128, 320, 512], [3, 5, 27, 3]),
}


def of_mmpretrain() -> dict[str, tuple[str, nn.Module]]:
    """Classifiers with VAN, as the configs of mmpretrain build them."""
    from mmpretrain.models import ImageClassifier

    def build(arch: str) -> nn.Module:
        head = dict(type='LinearClsHead', num_classes=1000, in_channels=SIZES[arch][0][-1])
        neck = dict(type='GlobalAveragePooling')
        return ImageClassifier(dict(type='VAN', arch=arch), neck=neck, head=head)

    call = "ImageClassifier(dict(type='VAN', arch={!r}), GlobalAveragePooling, LinearClsHead)"
    return {f'van_{arch}': (call.format(arch), build(arch)) for arch in SIZES}


def of_transformers() -> dict[str, tuple[str, nn.Module]]:
    """Classifiers with VAN."""
    from transformers import VanConfig, VanForImageClassification

    return {
        f'van_{arch}': (
            f'VanForImageClassification(VanConfig(hidden_sizes={dims}, depths={depths}, '
            'num_labels=1000))',
            VanForImageClassification(VanConfig(hidden_sizes=dims, depths=depths, num_labels=1000)),
        )
        for arch, (dims, depths) in SIZES.items()
    }


def of_timm() -> dict[str, tuple[str, nn.Module]]:
    """GhostNetV2 in its three widths, the ECA layer, and models with it."""
    import timm
    from timm.layers import EcaModule

    names = [f'ghostnetv2_{width}' for width in (100, 130, 160)]
    names += ['ecaresnet50d', 'ecaresnet26t', 'ecaresnetlight', 'eca_resnet33ts']
    models = {name: (f'create_model({name!r})', timm.create_model(name)) for name in names}
    return {**models, 'eca_256': ('layers.EcaModule(256)', EcaModule(256))}


SOURCES = {
    'mmpretrain': (of_mmpretrain, 'onedl-mmpretrain'),
    'transformers': (of_transformers, 'transformers'),
    'timm': (of_timm, 'timm'),
}


def main(package: str) -> None:
    """Write the files of one package beside this one."""
    make, distribution = SOURCES[package]
    for name, (call, model) in make().items():
        origin = f'{package}.{call}.state_dict() of {distribution} {version(distribution)}'
        tensors = {key: list(value.shape) for key, value in model.state_dict().items()}
        lines = [f'{json.dumps(key)}: {json.dumps(shape)}' for key, shape in tensors.items()]
        text = f'{{"origin": {json.dumps(origin)},\n"tensors": {{\n' + ',\n'.join(lines) + '}}\n'
        Path(__file__).with_name(f'{package}_{name}.json').write_text(text)


if __name__ == '__main__':
    main(sys.argv[1])
