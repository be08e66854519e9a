from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmlska.ops.call_context import is_compiling


def recompute(module: nn.Module, function: Callable, x: torch.Tensor) -> torch.Tensor:
    """Call ``function(x)`` now, and again in the backward pass instead of keeping activations.

    The running statistics of batch norms take a batch once, so that training gives the same model
    as without recomputation. A plain ``torch.utils.checkpoint`` counts every batch twice.

    Args:
        module (nn.Module): Holds what the function computes with.
        function (Callable): Maps a tensor to a tensor.
        x (torch.Tensor): Its input.
    """
    if is_compiling():
        # What compilers recompute has no side effects, and they take no contexts.
        return checkpoint(function, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), kept_statistics(module)

    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of a module leave their running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        # Copies take the updates. Without any buffers the norms would save fewer tensors than in
        # the first pass, which the checkpoint refuses.
        for norm, buffers in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value.clone())
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)
