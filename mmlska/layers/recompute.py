"""Activations that are computed again in the backward pass instead of being kept.

A form of gradient checkpointing (arXiv 1604.06174) by ``torch.utils.checkpoint``.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmlska.ops.call_context import is_compiling


def recompute(
    module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """Call ``function(x)`` now, and again in the backward pass instead of keeping activations.

    The running statistics of batch norms take a batch once, so that training gives the same model
    as without recomputation. A plain ``torch.utils.checkpoint`` counts every batch twice.

    Args:
        module (nn.Module): Holds what the function computes with.
        function (Callable): Maps a tensor to a tensor.
        x (Tensor): Its input.

    Returns:
        Tensor: ``function(x)``.
    """
    if is_compiling():
        # What compilers recompute has no side effects, and they take no contexts.
        return checkpoint(function, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), kept_statistics(module)

    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)


class kept_statistics:
    """Let the batch norms of a module leave their running statistics as they are.

    The context can be entered again: each backward pass through a graph that is retained recomputes
    in it.

    Args:
        module (nn.Module): The module whose batch norms are meant.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self.kept: list[dict[str, torch.Tensor]] = []

    def __enter__(self) -> None:
        self.kept = [dict(norm.named_buffers(recurse=False)) for norm in self.norms]
        # Copies take the updates. Without any buffers the norms would save fewer tensors than in
        # the first pass, which the checkpoint refuses.
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value.clone())

    def __exit__(self, *error: object) -> None:
        for norm, buffers in zip(self.norms, self.kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)
