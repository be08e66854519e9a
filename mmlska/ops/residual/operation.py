"""The residual sum, and which form computes it."""

import torch

from .. import triton_support
from ..call_context import is_compiling, needs_gradients, why_observed, why_special
from ..dispatch import chosen_backend, record
from ..trial import why_failed
from . import reference, triton_op


def add_scaled(
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x + branch * (scale * mask)``: layer scale, drop path and residual sum in one.

    In inference it is one pass over the memory. In training it is the reference form but where its
    kernels were measured to be faster on a GPU, see :func:`mmlska.ops.use_backend`. Tracers see the
    reference form, and so do compilers, which make one kernel of it. Gradients, also of gradients,
    flow into the map, the branch and the scale.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        branch (Tensor): Map of the same shape.
        scale (Tensor): One factor a channel, ``(C,)``.
        mask (Tensor, optional): One factor an image, ``(N, 1, 1, 1)``: 0 where its path is dropped,
            else the reciprocal of the probability to keep it. Defaults to None: no path is dropped.

    Returns:
        Tensor: Map of the same shape, of the dtype to which those of all four are promoted.

    Example:
        >>> import torch
        >>> from mmlska.ops import add_scaled
        >>> x, mask = torch.ones(2, 1, 1, 1), torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
        >>> add_scaled(x, 3 * x, torch.tensor([0.5]), mask).flatten()
        tensor([1., 4.])
    """
    # A tracer is to see the same whether gradients are on or off.
    if is_compiling():
        return reference.run(x, branch, scale, mask)
    form, reason = _choose(x, branch, scale, mask)
    record('add_scaled', form, x, reason)
    if form == 'triton':
        return triton_op.run(x, branch, scale, mask)
    if form == 'one_pass':
        return torch.addcmul(x, branch, reference.factor_of(scale, mask))
    return reference.run(x, branch, scale, mask)


def _choose(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None
) -> tuple[str, str]:
    """The form, and why it is the reference one; '' if it is not."""
    backend = chosen_backend()
    if backend == 'plain':
        return 'plain', "the backend is 'plain'"
    reason = why_observed(x) or why_special(branch, scale, mask)
    if reason:
        return 'plain', reason
    if not needs_gradients(x, branch, scale, mask):
        return 'one_pass', ''
    if backend == 'auto':
        call = x.device, x.numel(), True, branch.dtype
        reason = triton_support.why_slower('add_scaled', *call)
    elif backend != 'triton':
        reason = 'there is no such form of it'
    reason = reason or triton_op.why_not(x, branch, scale, mask) or why_failed(x.device)
    return 'plain' if reason else 'triton', reason
