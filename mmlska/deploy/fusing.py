"""Folding for inference: the same outputs with fewer operations, exactly.

In evaluation mode a BatchNorm is one factor and one shift a channel. Both go into the convolution
beside it, and so do layer scales, mixing weights and biases, wherever a convolution is pointwise or
no zero of a padding comes between.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable

import torch
from mmcv.cnn import ConvModule, is_norm
from mmcv.cnn.bricks.drop import DropPath
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from mmlska.layers import ContextAggregation, MixedAffinity
from mmlska.layers.dfc_attention import DFCGate
from mmlska.layers.ghost import GhostBottleneck
from mmlska.layers.large_kernel_attention import _DepthwiseGate
from mmlska.models.backbones.container import ContainerBlock, ContainerLight
from mmlska.models.backbones.ghostnetv2 import GhostNetV2
from mmlska.models.backbones.van import VAN, PatchEmbed, VANBlock
from mmlska.ops import is_watched

from .folded import Folded, as_folded
from .folding import affine_of, hand_on_bias, is_foldable, takes_input, takes_output
from .fused_blocks import (
    FusedContainerBlock,
    FusedContextAggregation,
    FusedMixedAffinity,
    FusedVANBlock,
)
from .pairs import fold_pairs, traced_pairs

FUSED = (FusedContainerBlock, FusedContextAggregation, FusedMixedAffinity, FusedVANBlock)


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Fold norms, layer scales, mixing weights and biases of a model for inference.

    Knows all backbones and attention layers of this package and mmcv's ``ConvModule``. In any other
    module a BatchNorm is folded if following its ``forward`` shows that the norm has the output of
    one convolution, and nothing else has, or that one pointwise convolution has the output of the
    norm. What cannot be folded is left as it is and named in a log line; :func:`list_unfolded`
    tells it too.

    Args:
        model (nn.Module): Model in evaluation mode: a detector, a segmentor, a backbone, a layer.
            It is left as it was.

    Returns:
        nn.Module: A folded copy with the same outputs. It cannot be trained: its parameters take no
        gradients, and ``train()`` is an error. It loads the weights of models folded like it, and
        refuses those of others.

    Raises:
        ValueError: If the model, or a part of it, is in training mode or folded already.
    """
    _check(model)
    fused = _fold(revert_sync_batchnorm(_copied(model)), {})
    fused = as_folded(fused.requires_grad_(False)).eval()
    _tell(list_unfolded(fused))
    return fused


def list_unfolded(model: nn.Module) -> dict[str, str]:
    """What is left to compute beside convolutions and activations, and why.

    Args:
        model (nn.Module): A folded model.

    Returns:
        dict[str, str]: A reason for each norm, and for each layer scale of VAN, by its name.
    """
    reasons = {name: _reason(module) for name, module in model.named_modules() if is_norm(module)}
    for name, module in model.named_modules():
        if isinstance(module, FusedVANBlock):
            for own, _ in module.named_parameters(name, recurse=False):
                reasons[own] = 'a plugin stands between it and the branch'
    return reasons


def _reason(norm: nn.Module) -> str:
    if not isinstance(norm, _BatchNorm):
        return f'{type(norm).__name__} normalises by statistics of each input'
    if norm.running_mean is None:
        return f'{type(norm).__name__} without running statistics normalises by those of each batch'
    return 'no convolution is known to stand where its factor and shift could go in'


def _tell(unfolded: dict[str, str]) -> None:
    for reason, number in Counter(unfolded.values()).items():
        first = next(name for name, own in unfolded.items() if own == reason)
        print_log(f'not folded: {number}, first {first}: {reason}', 'current', logging.INFO)


def _check(model: nn.Module) -> None:
    if any(isinstance(module, (Folded, *FUSED)) for module in model.modules()):
        raise ValueError('the model is folded already: fuse() it once, from the trained model')
    for name, module in model.named_modules():
        if module.training:
            which = f'{name} is' if name else 'the model is'
            raise ValueError(
                f'{which} in training mode, but fuse() folds running statistics: '
                'call model.eval() first'
            )


def _copied(model: nn.Module) -> nn.Module:
    # The process groups of SyncBN cannot be copied, and are not needed.
    kept = [getattr(m, key, None) for m in model.modules() for key in ('group', 'process_group')]
    return copy.deepcopy(model, {id(group): group for group in kept if group is not None})


def _fold(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Fold a module, inner modules first; one that stands in several places once for all."""
    if module in done:
        return done[module]
    # Nothing is kept for a backward pass, so there is nothing to compute again.
    if getattr(module, 'with_cp', False):
        module.with_cp = False
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, _fold(child, done))
    rule = next((rule for kind, rule in RULES.items() if _computes_as(module, kind)), fold_traced)
    done[module] = rule(module)
    return done[module]


def _computes_as(module: nn.Module, kind: type) -> bool:
    """Whether it is of a class, or of a derived one that does not compute something else."""
    return isinstance(module, kind) and all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ('forward', '_forward', 'forward_stage', '_aggregate')
    )


def fold_traced(module: nn.Module) -> nn.Module:
    """Any module, with what following its ``forward`` shows to be foldable."""
    if any(is_foldable(child) for child in module.children()):
        fold_pairs(module, traced_pairs(module))
    return module


def fold_conv_module(module: ConvModule) -> nn.Module:
    """Mmcv's convolution, in any order with norm and activation."""
    norm, conv = (module.order.index(layer) for layer in ('norm', 'conv'))
    names = {norm: module.norm_name, conv: 'conv'}
    padded = module.with_explicit_padding and norm < conv
    if module.with_norm and abs(norm - conv) == 1 and not padded:
        module.turn_on_efficient_conv_bn_eval(False)
        fold_pairs(module, [tuple(names[i] for i in sorted(names))])
    return module


def fold_known_pairs(*pairs: tuple[str, str]) -> Callable[[nn.Module], nn.Module]:
    """Rule for a class of which these children follow upon each other, see :func:`fold_pairs`."""

    def rule(module: nn.Module) -> nn.Module:
        fold_pairs(module, pairs)
        return module

    return rule


def fold_gate(gate: _DepthwiseGate) -> nn.Module:
    """The gate with the bias of its last depth-wise convolution in the pointwise one."""
    *_, (name, last), (_, conv1) = gate.named_children()
    if takes_output(last) and takes_input(conv1):
        last, gate.conv1 = hand_on_bias(last, conv1)
        setattr(gate, name, last)
    return gate


def fold_block(block: VANBlock | ContainerBlock) -> nn.Module:
    """The folded block; itself if its norms are no BatchNorms or somebody watches its parts."""
    if not (is_foldable(block.norm1) and is_foldable(block.norm2)) or is_watched(*block.modules()):
        return block
    return FusedVANBlock(block) if isinstance(block, VANBlock) else FusedContainerBlock(block)


def fold_layer(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Rule for a layer whose folded form is another class."""
    return lambda layer: layer if is_watched(*layer.modules()) else kind(layer)


def fold_van(model: VAN) -> nn.Module:
    """VAN with the norms after its stages, if they are BatchNorms, in the last blocks."""
    for i in range(1, model.num_stages + 1):
        block, norm = getattr(model, f'blocks{i}')[-1], getattr(model, f'norm{i}')
        setattr(model, f'norm{i}', fold_into_block(block, norm))
    return model


def fold_container(model: ContainerLight) -> nn.Module:
    """CONTAINER with the norm after the last stage in the last block."""
    if model.norm is not None:
        block = getattr(model, f'blocks{model.num_stages}')[-1]
        model.norm = fold_into_block(block, model.norm)
    return model


def fold_into_block(block: nn.Module, norm: nn.Module) -> nn.Module:
    """What is left of a norm after a block: nothing, or the norm."""
    is_fused = isinstance(block, (FusedVANBlock, FusedContainerBlock))
    taken = is_fused and is_foldable(norm) and block.end_with(affine_of(norm))
    return nn.Identity() if taken else norm


# What is folded by knowledge of its class. The inner modules of each are folded already.
RULES = {
    _DepthwiseGate: fold_gate,
    ContextAggregation: fold_layer(FusedContextAggregation),
    MixedAffinity: fold_layer(FusedMixedAffinity),
    DFCGate: fold_known_pairs(('0', '1'), ('2', '3'), ('4', '5')),
    GhostBottleneck: fold_known_pairs(('conv_dw', 'bn_dw')),
    GhostNetV2: fold_known_pairs(('conv_stem', 'bn1')),
    PatchEmbed: fold_known_pairs(('projection', 'norm')),
    VANBlock: fold_block,
    ContainerBlock: fold_block,
    VAN: fold_van,
    ContainerLight: fold_container,
    ConvModule: fold_conv_module,
    DropPath: lambda _: nn.Identity(),
}
