"""What tells a fused model from others: it stays in evaluation mode and takes its own weights."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from mmlska.checkpoint.strict_loading import FUSED_MARK

# Stands in the state dict, so that weights of fused and of other models cannot be taken for each
# other.
MARK = FUSED_MARK


def mark_fused(model: nn.Module) -> nn.Module:
    """Let a model refuse to train, and to load weights of models that are not fused; in place.

    The model stays of its own class, which detectors, runners and pickles rely on: three methods
    are replaced in this one object. They are bound by ``partial``, so that copies and pickles of
    the model have them too, bound to the copy.

    Args:
        model (nn.Module): A fused model in evaluation mode.
    """
    model.register_buffer(MARK, torch.tensor(True))
    methods: dict[str, Callable] = {
        'train': _stay_in_evaluation,
        '_load_from_state_dict': _load_fused,
        'extra_repr': _describe,
    }
    for name, method in methods.items():
        setattr(model, name, functools.partial(method, model))
    return model


def is_fused(model: nn.Module) -> bool:
    """Whether :func:`mmlska.deploy.fuse` has made this model or a part of it."""
    return any(MARK in module._buffers for module in model.modules())


def _stay_in_evaluation(model: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        raise RuntimeError(
            'a fused model cannot be trained: its norms have become part of its convolutions. '
            'Train the model that was given to fuse(), and fuse it again'
        )
    return type(model).train(model, False)


def _load_fused(model: nn.Module, state_dict: dict, prefix: str, *args) -> None:
    if prefix + MARK not in state_dict:
        raise ValueError(
            'these weights are of a model that is not fused: load them into the model before fuse()'
        )
    type(model)._load_from_state_dict(model, state_dict, prefix, *args)


def _describe(model: nn.Module) -> str:
    return ', '.join(filter(None, [type(model).extra_repr(model), 'fused']))
