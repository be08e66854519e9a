"""Backbones and necks train with a mmcv that has no compiled operators, as the lite build."""

import subprocess
import sys

import pytest

# How the operators are missing: not there, or there and unable to load, as after an upgrade of
# PyTorch, where importlib finds them all the same.
MISSING = {
    'absent': """
class Others(importlib.machinery.PathFinder):
    finders = list(sys.meta_path)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == 'mmcv._ext':
            return None
        specs = (finder.find_spec(name, path, target) for finder in cls.finders)
        return next((spec for spec in specs if spec is not None), None)

sys.meta_path[:] = [Others]
""",
    'broken': """
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError('undefined symbol: _ZN2at4_ops5zeros')

    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Broken())
""",
}
TRAIN = """
import torch
from mmengine.registry import MODELS

sizes = dict(embed_dims=[8, 16], depths=[1, 1], ffn_ratios=[2, 2])
models = {
    'VAN': dict(arch=sizes, out_indices=(0, 1)),
    'GhostNetV2': dict(width=0.25, out_indices=(0, 1)),
    'ContainerLight': dict(arch=dict(sizes, num_heads=2), out_indices=(0, 1)),
}
for name, options in models.items():
    torch.manual_seed(0)
    model = MODELS.build(dict(type=f'mmlska.{name}', **options)).train()
    neck = MODELS.build(
        dict(
            type='mmlska.PyramidAttention',
            attention=dict(type='LSKA', kernel_size=7),
            in_channels=list(model.out_channels),
            num_outs=2,
        )
    )
    parameters = [*model.parameters(), *neck.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    sum(x.square().mean() for x in neck(model(torch.rand(2, 3, 64, 64)))).backward()
    assert all(torch.isfinite(p.grad).all() for p in parameters), name
    optimizer.step()
    print(name)
try:
    import mmcv._ext
except ImportError:
    print('no operators')
"""


@pytest.mark.parametrize('how', MISSING)
@pytest.mark.slow
def test_backbones_and_necks_train(how):
    code = f'import importlib.machinery, sys\n{MISSING[how]}\n{TRAIN}'
    command = [sys.executable, '-W', 'ignore', '-c', code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['VAN', 'GhostNetV2', 'ContainerLight', 'no', 'operators']
