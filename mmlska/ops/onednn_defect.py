"""Where PyTorch's convolution on the CPU computes wrong weight gradients, and the way around.

oneDNN (3.12.0, in PyTorch 2.13.0) computes the weight gradient of a depth-wise convolution wrongly,
by 8 to 75 percent, in float32 and bfloat16, where all of this holds: the map is contiguous, not
channels_last; the kernel is undilated, at most 3 wide and at least 33 high; and the map has more
than 45 rows. Not every such height is affected: with 33 rows of kernel it is one of 15, with 41
every third, with 61 most. The result and all other gradients are right, and so is everything in
channels_last and along the other axis. Kernels of up to 31 rows are right: oneDNN divides a map
into blocks of 15 rows, and their padding is no higher than one block.

``tests/test_ops/test_onednn_defect.py`` says when a version of PyTorch is free of it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .call_context import are_transforms_active, is_compiling, layout_of

HIGHEST_RIGHT = 31
WIDEST_WRONG = 3


def is_affected(kernel_size: Sequence[int], weight: torch.Tensor, dilation: int) -> bool:
    """Whether PyTorch's gradient of a kernel ``(C, 1, kh, kw)`` may be wrong for some map.

    Args:
        kernel_size (Sequence[int]): Height and width of the kernel.
        weight (Tensor): The kernel.
        dilation (int): Its dilation.
    """
    if len(kernel_size) != 2 or isinstance(kernel_size[0], torch.Tensor):
        # No 2-D kernel, or sizes under torch.jit.trace, about which a trace must not ask.
        return False
    height, width = kernel_size
    if height <= HIGHEST_RIGHT or width > WIDEST_WRONG or dilation > 1:
        return False
    if weight.device.type != 'cpu' or weight.dtype == torch.float64:
        return False
    # A traced graph is to be the same with and without gradients, and tensors under a transform do
    # not tell what is asked of them.
    seen = torch.jit.is_tracing() or _is_transformed()
    return seen or (torch.is_grad_enabled() and weight.requires_grad)


def in_right_layout(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """The map that a module is to be given so that PyTorch's gradient of its kernel is right.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        conv (nn.Conv2d): The convolution.

    Returns:
        Tensor: The same values, in channels_last where the defect would come in.
    """
    affected = is_affected(conv.kernel_size, conv.weight, conv.dilation[0])
    if not affected or x.dim() != 4 or _is_transformed():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: list[int]
) -> torch.Tensor:
    """Convolve depth-wise with an affected kernel so that all gradients are right.

    Args:
        x (Tensor): Map ``(N, C, H, W)`` or ``(C, H, W)``.
        weight (Tensor): Kernel ``(C, 1, kh, kw)``.
        bias (Tensor | None): Bias ``(C,)``, or None.
        padding (list[int]): Zeros above and below, and to the left and to the right.

    Returns:
        Tensor: Map of the shape and the layout of ``x``; contiguous under a transform.
    """
    channels = weight.shape[0]
    if x.dim() == 4 and not _is_transformed():
        layout = layout_of(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, 1, padding, 1, channels).contiguous(memory_format=layout)
    # Transforms rearrange maps, so that no layout is sure to last: columns become rows.
    x, weight = x.transpose(-2, -1), weight.transpose(-2, -1)
    return F.conv2d(x, weight, bias, 1, padding[::-1], 1, channels).transpose(-2, -1).contiguous()


def _is_transformed() -> bool:
    return not is_compiling() and are_transforms_active()
