"""Products of matrices on the CPU in float32, by oneDNN where that is the faster library.

PyTorch takes Intel's MKL for them. On an AMD processor that is half as fast as oneDNN, which
PyTorch takes for convolutions, and for products of matrices only below float32 or when it compiles.
"""

import torch
import torch.nn.functional as F

EXISTS = hasattr(torch.ops.mkldnn, '_linear_pointwise')


def linear(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``left @ right.T + bias``, without a graph for autograd.

    Args:
        left (Tensor): Matrix ``(M, K)``.
        right (Tensor): Matrix ``(N, K)``.
        bias (Tensor | None): ``(N,)``, or None. Defaults to None.

    Returns:
        Tensor: Contiguous matrix ``(M, N)``.
    """
    if _is_for_onednn(right):
        return torch.ops.mkldnn._linear_pointwise(left, right, bias, 'none', [], '')
    return F.linear(left, right, bias)


def _is_for_onednn(right: torch.Tensor) -> bool:
    # Of anything but a dense matrix oneDNN makes a product in its slowest way.
    is_dense = right.is_contiguous() or right.t().is_contiguous()
    return (
        EXISTS
        and is_dense
        and right.numel() > 0
        and right.dtype == torch.float32
        and right.device.type == 'cpu'
        and torch._C._get_mkldnn_enabled()
    )
