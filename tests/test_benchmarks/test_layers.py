import pytest
import torch
from matplotlib.textpath import TextPath
from torch import nn

from benchmarks.layer_figures import BOX_WIDTH, DATA_FLOWS, STEP_FONT_SIZE, gradient_footprint
from benchmarks.layers import (
    BACKBONES,
    LAYERS,
    compare_modules,
    draw_figures,
    layer_modules,
    saved_bytes,
)
from benchmarks.mechanism_figures import MECHANISMS, cells_seen, footprint
from mmlska.layers.build import build_layer
from mmlska.registry import MODELS


def test_every_registered_layer_is_compared_and_drawn():
    kinds = {name for name, cls in MODELS.module_dict.items() if hasattr(cls, '_abbr_')}
    # These wrap other layers.
    kinds -= {'AttentionSequence', 'IdentityStart'}
    assert {cfg['type'] for cfg, _ in LAYERS.values()} == kinds
    assert set(DATA_FLOWS) == kinds


def test_the_words_of_a_step_fit_into_its_box():
    lines = [line for flow in DATA_FLOWS.values() for step in flow for line in step.splitlines()]
    widths = {line: TextPath((0, 0), line, STEP_FONT_SIZE).get_extents().width for line in lines}
    assert {line for line, points in widths.items() if points > 72 * BOX_WIDTH} == set()


def test_the_backbones_are_compared():
    assert {'VAN-LSKA-tiny', 'GhostNetV2 1.0x', 'ContainerLight'} <= set(BACKBONES)


def test_saved_bytes_are_the_activations_that_the_backward_pass_needs():
    # The input is known, GELU needs its input, the last convolution the output of GELU.
    module = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 1))
    assert saved_bytes(module, torch.rand(1, 4, 16, 16)) == 2 * 8 * 16 * 16 * 4
    # A map that two operations need counts once.
    assert saved_bytes(nn.Sequential(nn.Conv2d(4, 4, 1), Square()), torch.rand(1, 4, 8, 8)) == 1024


class Square(nn.Module):
    def forward(self, x):
        return x * x + x.sin() * 0


def test_the_reference_is_measured_once_more():
    modules = {name: build_layer(dict(type=name), 8) for name in ('LSKA', 'ECA')}
    rows = compare_modules(modules, (1, 8, 12, 10), (1, 8, 4, 4), rounds=2)
    assert [row.name for row in rows] == ['LSKA', 'ECA', 'LSKA once more']
    assert rows[0].ratio == 1
    assert (rows[0].params, rows[0].macs) == (rows[2].params, rows[2].macs)
    # k = 23: two 5s, two 7s and the product of the channels, per position.
    assert rows[0].macs == 12 * 10 * 8 * (5 + 5 + 7 + 7 + 8)
    assert rows[0].saved_bytes == rows[2].saved_bytes > rows[1].saved_bytes


@pytest.mark.parametrize('name', LAYERS)
def test_what_a_layer_sees_is_what_the_table_says(name):
    cfg, sees = LAYERS[name]
    torch.manual_seed(0)
    layer = build_layer(cfg, 8)
    if cfg['type'] == 'ContextAggregation':
        nn.init.normal_(layer.m.weight)
    footprint = gradient_footprint(layer, 8, 41, samples=2) > 0
    assert footprint[20, 20]
    rows = footprint.any(1).sum().item()
    if sees.startswith('all'):
        assert footprint.all()
    else:
        assert rows == int(sees.split(' x ')[0])


def test_pictures_show_what_layers_see():
    for kind in ('LKATrivial', 'LSKATrivial', 'LKA', 'LSKA'):
        convs = build_layer(dict(type=kind, kernel_size=23), 1).depthwise_convs()
        assert footprint(convs).sum() == 23 * 23
    convs = list(build_layer(dict(type='DFCAttention'), 1).short_conv)[2:5:2]
    assert cells_seen(convs, 17).sum() == 10 * 10


def test_figures_are_drawn_and_not_blank(tmp_path):
    draw_figures(tmp_path / 'figures', size=25)
    import cv2

    pictures = sorted((tmp_path / 'figures').glob('*.png'))
    assert len(pictures) == 2 + len(MECHANISMS)
    for path in pictures:
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).std() > 20, path


def test_layers_are_built_for_any_width():
    modules = layer_modules(16)
    x = torch.rand(1, 16, 9, 7)
    assert all(layer.eval()(x).shape == x.shape for layer in modules.values())
