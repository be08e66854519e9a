"""Fuse a model for inference: the same outputs with fewer operations, exactly.

In evaluation mode a BatchNorm is one factor and one shift a channel. Both go into the convolution
beside it, and so do layer scales, mixing weights and biases, wherever a convolution is pointwise or
no zero of a padding comes between.
"""

import copy
import logging
from collections import Counter

import torch
from mmcv.cnn import is_norm
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from .fused_mark import is_fused, mark_fused
from .fused_modules import (
    FusedContainerBlock,
    FusedContextAggregation,
    FusedMixedAffinity,
    FusedVANBlock,
)
from .rules import rule_for

FUSED = (FusedContainerBlock, FusedContextAggregation, FusedMixedAffinity, FusedVANBlock)


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Fuse norms, layer scales, mixing weights and biases of a model for inference.

    All backbones and attention layers of this package, and mmcv's ``ConvModule``, have a rule in
    :mod:`mmlska.deploy.rules`. In any other module a BatchNorm is fused if following its
    ``forward`` shows that the norm has the output of one convolution, and nothing else has, or that
    one pointwise convolution has the output of the norm. What cannot be fused is left as it is and
    named in a log line; :func:`list_unfused` tells it too.

    Args:
        model (nn.Module): Model in evaluation mode: a detector, a segmentor, a backbone, a layer.
            It is left as it was.

    Returns:
        nn.Module: A fused copy of the same class with the same outputs. It cannot be trained: its
        parameters take no gradients, and ``train()`` is an error. It loads the weights of models
        fused like it, and refuses those of others.

    Raises:
        ValueError: If the model, or a part of it, is in training mode or fused already.
    """
    _check(model)
    fused = _fuse(revert_sync_batchnorm(_copied(model)), {})
    # Not in a chain: train() of mmdet's and mmseg's ResNet, which eval() calls, returns nothing.
    fused.requires_grad_(False).eval()
    mark_fused(fused)
    _tell(list_unfused(fused))
    return fused


def list_unfused(model: nn.Module) -> dict[str, str]:
    """What is left to compute beside convolutions and activations, and why.

    Args:
        model (nn.Module): A fused model.

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


def _tell(unfused: dict[str, str]) -> None:
    for reason, number in Counter(unfused.values()).items():
        first = next(name for name, own in unfused.items() if own == reason)
        print_log(f'not fused: {number}, first {first}: {reason}', 'current', logging.INFO)


def _check(model: nn.Module) -> None:
    if is_fused(model) or any(isinstance(module, FUSED) for module in model.modules()):
        raise ValueError('the model is fused already: fuse() it once, from the trained model')
    for name, module in model.named_modules():
        if module.training:
            which = f'{name} is' if name else 'the model is'
            raise ValueError(
                f'{which} in training mode, but fuse() takes running statistics: '
                'call model.eval() first'
            )


def _copied(model: nn.Module) -> nn.Module:
    # The process groups of SyncBN cannot be copied, and are not needed.
    kept = [getattr(m, key, None) for m in model.modules() for key in ('group', 'process_group')]
    return copy.deepcopy(model, {id(group): group for group in kept if group is not None})


def _fuse(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Fuse a module, inner modules first; one that stands in several places once for all."""
    if module in done:
        return done[module]
    # Nothing is kept for a backward pass, so there is nothing to compute again.
    if getattr(module, 'with_cp', False):
        module.with_cp = False
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, _fuse(child, done))
    done[module] = rule_for(module)(module)
    return done[module]
