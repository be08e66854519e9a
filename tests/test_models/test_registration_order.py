"""The order of registration is part of the contract.

Mmcv fuses a norm into the convolution that was registered last, whatever ``forward`` does.
"""

import copy

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm

from mmlska.layers.ghost import GhostBottleneck
from mmlska.models import VAN, ContainerLight, DFCAttention, GhostNetV2, PyramidAttention

ARCH = dict(embed_dims=[8, 16, 24, 32], depths=[1, 2, 1, 2], ffn_ratios=[2] * 4)
PLUGINS = [
    dict(cfg=dict(type='DFCAttention'), position=position)
    for position in ('after_attention', 'after_ffn', 'after_stage')
]
BACKBONES = {
    'van': lambda: VAN(ARCH),
    'van with norms everywhere': lambda: VAN(
        ARCH, stage_norm_cfg=dict(type='BN'), plugins=PLUGINS, attention=dict(type='DFCAttention')
    ),
    'ghostnetv2': lambda: GhostNetV2(0.25, with_last_conv=True),
    'container': lambda: ContainerLight(dict(ARCH, num_heads=4)),
    'mixing container': lambda: ContainerLight(dict(ARCH, num_heads=[2, 0, 4, 4])),
}
LAYERS = {
    'dfc': lambda: DFCAttention(8),
    'ghost': lambda: GhostBottleneck(8, 16, 8, stride=2, se_ratio=0.25, attention=True),
    'residual ghost': lambda: GhostBottleneck(8, 16, 8),
    'neck': lambda: PyramidAttention(dict(type='DFCAttention'), in_channels=8, num_outs=1),
}


def trained(model):
    """Statistics and weights of norms far from the initial ones, so that a wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    size = value.shape
                    spread = torch.rand(size, generator=generator) + 0.5
                    value.copy_(spread if 'var' in name else spread - 1)
    return model.double().eval()


def largest_error(outs, expected):
    pairs = zip(outs, expected, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


@pytest.mark.filterwarnings('ignore:an input of')
@pytest.mark.parametrize('name', [*BACKBONES, *LAYERS])
@torch.no_grad()
def test_mmcv_fuses_every_norm_where_it_belongs(name):
    torch.manual_seed(0)
    model = trained({**BACKBONES, **LAYERS}[name]())
    x = torch.rand(1, 8 if name in LAYERS else 3, 50, 70, dtype=torch.float64)
    given = [x] if isinstance(model, PyramidAttention) else x
    assert largest_error(fuse_conv_bn(copy.deepcopy(model))(given), model(given)) < 1e-12
