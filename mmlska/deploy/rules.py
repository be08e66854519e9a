"""How each class of this package fuses: one table, and the rules that it names."""

import functools
import inspect
from collections.abc import Callable

from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.drop import DropPath
from torch import nn

from mmlska.layers import ContextAggregation, MixedAffinity
from mmlska.layers.dfc_attention import DFCGate
from mmlska.layers.ghost import GhostBottleneck
from mmlska.layers.large_kernel_attention import _DepthwiseGate
from mmlska.models.backbones.container import ContainerBlock, ContainerLight
from mmlska.models.backbones.ghostnetv2 import GhostNetV2
from mmlska.models.backbones.van import VAN, PatchEmbed, VANBlock
from mmlska.ops import is_watched

from .affine import affine_of, hand_on_bias, is_fusible, takes_input, takes_output
from .conv_norm_pairs import fuse_pairs, traced_pairs
from .fused_modules import (
    FusedContainerBlock,
    FusedContextAggregation,
    FusedMixedAffinity,
    FusedVANBlock,
)

Rule = Callable[[nn.Module], nn.Module]


def rule_for(module: nn.Module) -> Rule:
    """The rule of the class of a module; :func:`fuse_traced` for any that the table lacks.

    A rule takes a module whose children are fused already and returns what stands in its place.
    """
    own = type(module)
    return next((rule for kind, rule in RULES.items() if computes_as(own, kind)), fuse_traced)


@functools.cache
def computes_as(own: type[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether a class is another one, or derived from it and overrides none of its methods.

    It may build something else. What it computes with a method of its own, the rule of its base
    cannot know.
    """
    return issubclass(own, kind) and all(
        getattr(own, name) is method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if name != '__init__' and method is not getattr(nn.Module, name, None)
    )


def fuse_traced(module: nn.Module) -> nn.Module:
    """Any module, with what following its ``forward`` shows to be fusible."""
    if any(is_fusible(child) for child in module.children()):
        fuse_pairs(module, traced_pairs(module))
    return module


def fuse_conv_module(module: ConvModule) -> nn.Module:
    """Mmcv's convolution, in any order with norm and activation."""
    norm, conv = (module.order.index(layer) for layer in ('norm', 'conv'))
    names = {norm: module.norm_name, conv: 'conv'}
    padded = module.with_explicit_padding and norm < conv
    if module.with_norm and abs(norm - conv) == 1 and not padded:
        module.turn_on_efficient_conv_bn_eval(False)
        fuse_pairs(module, [tuple(names[i] for i in sorted(names))])
    return module


def fuse_known_pairs(*pairs: tuple[str, str]) -> Rule:
    """Rule for a class of which these children follow upon each other, see :func:`fuse_pairs`."""

    def rule(module: nn.Module) -> nn.Module:
        fuse_pairs(module, pairs)
        return module

    return rule


def fuse_gate(gate: _DepthwiseGate) -> nn.Module:
    """The gate with the bias of its last depth-wise convolution in the pointwise one."""
    name = gate.cascade_names[-1]
    last = getattr(gate, name)
    if takes_output(last) and takes_input(gate.conv1):
        last, gate.conv1 = hand_on_bias(last, gate.conv1)
        setattr(gate, name, last)
    return gate


def fuse_by(kind: type[nn.Module]) -> Rule:
    """Rule for a layer whose fused form is another class, and remakes its convolutions.

    Others in their place, parametrised ones or adapters around them, compute something else.
    """

    def rule(layer: nn.Module) -> nn.Module:
        is_plain = all(map(takes_output, kind.remade(layer))) and not is_watched(*layer.modules())
        return kind(layer) if is_plain else layer

    return rule


def fuse_block_by(kind: type[nn.Module]) -> Rule:
    """Rule for a block whose fused form is another class, if its norms are BatchNorms."""

    def rule(block: VANBlock | ContainerBlock) -> nn.Module:
        has_batch_norms = is_fusible(block.norm1) and is_fusible(block.norm2)
        return fuse_by(kind)(block) if has_batch_norms else block

    return rule


def fuse_van(model: VAN) -> nn.Module:
    """VAN with the norms after its stages, if they are BatchNorms, in the last blocks."""
    for i in range(1, model.num_stages + 1):
        block, norm = getattr(model, f'blocks{i}')[-1], getattr(model, f'norm{i}')
        setattr(model, f'norm{i}', fuse_into_block(block, norm))
    return model


def fuse_container(model: ContainerLight) -> nn.Module:
    """CONTAINER with the norm after the last stage in the last block."""
    if model.norm is not None:
        block = getattr(model, f'blocks{model.num_stages}')[-1]
        model.norm = fuse_into_block(block, model.norm)
    return model


def fuse_into_block(block: nn.Module, norm: nn.Module) -> nn.Module:
    """What is left of a norm after a block: nothing, or the norm."""
    is_fused = isinstance(block, (FusedVANBlock, FusedContainerBlock))
    taken = is_fused and is_fusible(norm) and block.end_with(affine_of(norm))
    return nn.Identity() if taken else norm


RULES: dict[type[nn.Module], Rule] = {
    _DepthwiseGate: fuse_gate,
    ContextAggregation: fuse_by(FusedContextAggregation),
    MixedAffinity: fuse_by(FusedMixedAffinity),
    DFCGate: fuse_known_pairs(('0', '1'), ('2', '3'), ('4', '5')),
    GhostBottleneck: fuse_known_pairs(('conv_dw', 'bn_dw')),
    GhostNetV2: fuse_known_pairs(('conv_stem', 'bn1')),
    PatchEmbed: fuse_known_pairs(('projection', 'norm')),
    VANBlock: fuse_block_by(FusedVANBlock),
    ContainerBlock: fuse_block_by(FusedContainerBlock),
    VAN: fuse_van,
    ContainerLight: fuse_container,
    ConvModule: fuse_conv_module,
    DropPath: lambda _: nn.Identity(),
}
