"""Layers, necks and backbones as ONNX, fused and not, at sizes that the exporter has not seen."""

import pytest
import torch
from cheap_layers import LAYERS
from fusing_laws import NANO, largest_error, trained
from mmengine.registry import MODELS
from torch import nn
from torch_versions import since

from mmlska.deploy import fuse
from mmlska.deploy.onnx_files import OLDEST_TORCH, ExportOptions, OnnxModel, export_onnx
from mmlska.models import VAN, ContainerLight, GhostNetV2

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = [
    pytest.mark.slow,
    since(OLDEST_TORCH, 'its exporter to ONNX is not made for these graphs'),
]

NECKS = {
    'PyramidAttention': dict(attention=dict(type='LSKA', kernel_size=7), num_outs=2),
    'SpatialContextPyramid': dict(num_outs=2),
}
MIXING = dict(embed_dims=[8, 12, 16, 16], depths=[1, 1, 1, 1], ffn_ratios=[2] * 4, num_heads=4)


class Together(nn.Module):
    """Modules that all get the same map, each once as it is and once fused."""

    def __init__(self, modules, necks=()):
        super().__init__()
        both = {name: [trained(m), fuse(trained(m))] for name, m in modules.items()}
        self.parts = nn.ModuleDict({name: nn.ModuleList(pair) for name, pair in both.items()})
        self.necks = set(necks)

    def forward(self, image):
        outs = {}
        for name, pair in self.parts.items():
            # A pyramid of two levels.
            x = (image, image[:, :, ::2, ::2]) if name in self.necks else image
            for kind, part in zip(('plain', 'fused'), pair, strict=True):
                found = part(x)
                found = found if isinstance(found, tuple) else (found,)
                outs |= {f'{name}_{kind}_{i}': level for i, level in enumerate(found)}
        return outs


@torch.no_grad()
def exports(graph, example, other_shapes, file):
    """The graph is the same in ONNX Runtime, at the shape of the example and at others."""
    export_onnx(graph, torch.randn(example), file, ExportOptions(dynamic=True))
    model = OnnxModel(file)
    for shape in (example, *other_shapes):
        x = torch.randn(shape)
        found = model(x)
        for name, expected in graph(x).items():
            error = largest_error(torch.from_numpy(found[name]), expected)
            assert error < 1e-5, (name, shape, error)


def test_the_table_holds_every_layer_and_neck():
    named = MODELS.children['mmlska'].module_dict
    plugins = {name for name, kind in named.items() if hasattr(kind, '_abbr_')}
    assert plugins == set(LAYERS)
    assert {name for name in named if 'Pyramid' in name} == set(NECKS)


def test_layers_and_necks_export(tmp_path):
    settings = LAYERS | NECKS
    modules = {
        name: MODELS.build(dict(type=f'mmlska.{name}', in_channels=8, **options))
        for name, options in settings.items()
    }
    graph = Together(modules, NECKS).eval()
    exports(graph, (2, 8, 12, 20), [(1, 8, 7, 9), (3, 8, 16, 10)], tmp_path / 'layers.onnx')
    assert OnnxModel(tmp_path / 'layers.onnx').metadata == dict(least_size=[2, 2])


@pytest.mark.parametrize(
    'modules',
    [
        dict(
            van=VAN(NANO, attention=dict(type='LSKA', kernel_size=11)),
            container=ContainerLight(MIXING),
        ),
        dict(ghost=GhostNetV2(0.4)),
    ],
    ids=['van and container', 'ghostnetv2'],
)
def test_backbones_export(modules, tmp_path):
    file = tmp_path / 'backbones.onnx'
    exports(Together(modules), (2, 3, 160, 128), [(1, 3, 65, 80), (3, 3, 128, 192)], file)
    assert OnnxModel(file).metadata == dict(least_size=[33, 33])
