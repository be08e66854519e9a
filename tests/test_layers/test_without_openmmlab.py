"""Layers need PyTorch alone: tried in a process in which nothing of OpenMMLab can be imported."""

import subprocess
import sys

import torch
from torch_versions import since

from mmlska.ops.call_context import constant_when_compiled

OPENMMLAB = ['mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'numpy', 'cv2']

# Found by nobody, as a package that is not installed. A finder that raises would be something else:
# PyTorch itself asks whether there is a NumPy.
BLOCK = """
import importlib.machinery, sys

class Others(importlib.machinery.PathFinder):
    finders = list(sys.meta_path)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            return None
        specs = (finder.find_spec(name, path, target) for finder in cls.finders)
        return next((spec for spec in specs if spec is not None), None)

sys.meta_path[:] = [Others]
"""

EVERY_LAYER = """
import torch
from mmlska import layers
from mmlska.layers import *

makers = {
    'LSKA': lambda: LSKA(8, kernel_size=11),
    'LKA': lambda: LKA(8, kernel_size=11),
    'LSKATrivial': lambda: LSKATrivial(8, kernel_size=5),
    'LKATrivial': lambda: LKATrivial(8, kernel_size=5),
    'ECA': lambda: ECA(8),
    'ContextAggregation': lambda: ContextAggregation(8),
    'DFCAttention': lambda: DFCAttention(8),
    'MixedAffinity': lambda: MixedAffinity(8, num_heads=2),
    'AttentionSequence': lambda: AttentionSequence(8, [dict(type='LSKA'), dict(type='mmlska.ECA')]),
    'IdentityStart': lambda: IdentityStart(8, attention=dict(type='ECA')),
    'ConvFFN': lambda: ConvFFN(8, 16),
    'GhostModule': lambda: GhostModule(8, 8, attention=True),
    'GhostBottleneck': lambda: GhostBottleneck(8, 16, 8, se_ratio=0.25, with_cp=True),
    'SqueezeExcite': lambda: SqueezeExcite(8, 0.25),
    'LayerNorm2d': lambda: LayerNorm2d(8),
}
kinds = {n for n in layers.__all__ if isinstance(getattr(layers, n), type)}
assert kinds == set(makers), kinds ^ set(makers)
for name, make in makers.items():
    layer = make()
    x = torch.rand(2, 8, 9, 7, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape, name
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all(), name
    assert all(p.grad is not None for p in layer.parameters()), name
    assert layer.eval()(x).shape == x.shape, name
try:
    AttentionSequence(8, [dict(type='LSKAA')])
except KeyError as error:
    print(error)
print(sorted(n for n in sys.modules if n.partition('.')[0] in BLOCKED))
"""

REGISTRIES = """
from mmlska.registry import HOOKS, METRICS, MODELS, find_model
class Own: pass
assert MODELS.register_module()(Own) is Own
print(type(MODELS).__name__, find_model('mmlska.Own') is Own, find_model('mmdet.Own'))
"""


def run(code, blocked=OPENMMLAB):
    """Lines that code prints in a process in which some packages cannot be imported."""
    command = [sys.executable, '-W', 'ignore', '-c', f'BLOCKED = {blocked}{BLOCK}{code}']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_layer_trains_where_only_pytorch_is_and_registries_tell_so_by_their_kind():
    error, imported, registries = run(EVERY_LAYER + REGISTRIES)
    assert "the nearest is 'LSKA'" in error
    assert imported == '[]'
    assert registries == 'Names True None'


def test_an_unknown_name_is_told_as_such_where_mmengine_is_and_mmcv_is_not():
    code = (
        'from mmlska.layers import AttentionSequence\n'
        "try: AttentionSequence(8, [dict(type='LSKAA')])\n"
        'except KeyError as error: print(error)'
    )
    (error,) = run(code, blocked=['mmcv'])
    assert "the nearest is 'LSKA'" in error


def test_a_mmengine_that_does_not_import_is_as_one_that_is_absent():
    code = 'from mmlska.layers import LSKA\nprint(LSKA(4, kernel_size=7).in_channels)'
    assert run(code, blocked=['addict']) == ['4']


@since('2.4', 'only its compiler tells whether it is at work')
def test_importing_layers_does_not_import_the_compiler_of_pytorch():
    code = "import mmlska.layers\nprint('torch._dynamo' in sys.modules)"
    assert run(code) == ['False']


def test_functions_are_marked_for_the_compiler_as_pytorch_marks_them():
    def ours():
        return True

    def theirs():
        return True

    constant_when_compiled(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}
