"""The residual sum on the GPU, for training, see ``triton_kernels.py``.

Forward two maps are read and one is written. Backward the gradient and the branch are read, and
the gradient of the branch is written; that of the map is the gradient itself. Of the maps the
branch alone is kept.

Compilers do not see it: they make one kernel of the reference form and of what surrounds it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .. import triton_support
from ..call_context import layout_of
from . import reference


def why_not(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None
) -> str:
    """What keeps this form from a sum; '' if nothing does."""
    reason = triton_support.why_no_triton(x.device)
    if reason:
        return reason
    given = [tensor for tensor in (x, branch, scale, mask) if tensor is not None]
    if any(tensor.dtype not in triton_support.DTYPES for tensor in given):
        return 'there are no kernels for the dtype of a tensor'
    if any(tensor.device != x.device for tensor in given):
        return 'the tensors are on several devices'
    if x.dim() != 4 or branch.shape != x.shape or scale.shape != x.shape[1:2]:
        return 'the maps are not both of shape (N, C, H, W), or the scale is not of shape (C,)'
    if mask is not None and (mask.shape != (x.shape[0], 1, 1, 1) or mask.requires_grad):
        return 'the mask is not of shape (N, 1, 1, 1), or needs a gradient'
    return ''


def run(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute the sum, see :func:`mmlska.ops.add_scaled`."""
    return _AddScaled.apply(x, branch, scale, mask)


def run_with_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
) -> list[torch.Tensor | None]:
    """The result, and a gradient for each argument, without PyTorch's autograd.

    There is none of the mask.
    """
    call = branch, scale, mask
    return [_forward(x, *call), *_backward(grad, x.dtype, *call, [True] * 3), None]


class _AddScaled(torch.autograd.Function):
    """What eager calls record."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        branch: torch.Tensor,
        scale: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.dtype = x.dtype
        ctx.save_for_backward(branch, scale, mask)
        return _forward(x, branch, scale, mask)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        compute = reference.backward if torch.is_grad_enabled() else _backward
        found = compute(grad, ctx.dtype, *ctx.saved_tensors, ctx.needs_input_grad[:3])
        return *found, None


def _forward(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The sum in the layout of the map ``(N, C, H, W)``."""
    from . import triton_kernels

    layout = layout_of(x)
    maps = [map_.contiguous(memory_format=layout) for map_ in (x, branch)]
    return triton_kernels.add(*maps, *_dense(scale, mask))


def _backward(
    grad: torch.Tensor,
    dtype: torch.dtype,
    branch: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the map, of ``dtype``, the branch and the scale, None where none is needed."""
    from . import triton_kernels

    found = [grad.to(dtype) if needed[0] else None, None, None]
    if needed[1] or needed[2]:
        layout = layout_of(branch)
        maps = [map_.contiguous(memory_format=layout) for map_ in (grad, branch)]
        found[1:] = triton_kernels.differentiate(*maps, *_dense(scale, mask), *needed[1:])
    return found


def _dense(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Scale and mask without gaps."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
