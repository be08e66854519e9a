"""The mixed affinity of CONTAINER.

"Container: Context Aggregation Network" (arXiv 2106.01401); github.com/allenai/container at
443be8a, whose LICENSE is MIT while its README says Apache-2.0. Written from the equations, with the
official names of weights.

CONTAINER sees self-attention, depth-wise convolution and MLP-Mixer as one operation,
``Y = (A V) W + X`` with ``V`` a projection of ``X``, that differs in the affinity ``A`` between
positions: softmax of products of queries and keys (dynamic, dense), a kernel along the diagonals
(static, sparse), or any learned matrix (static, dense). It learns a mix of the first two.

Not to be mixed up with the context aggregation of CATNet, which some posts print under CONTAINER's
title: that one pools a single global vector, and knows no affinity between positions.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mmlska.ops.argument_checks import check_odd, check_positive_int
from mmlska.registry import MODELS

from .input_check import check_map


def check_heads(channels: int, num_heads: int) -> None:
    """Refuse heads that do not split the channels evenly.

    Raises:
        ValueError: If ``num_heads`` does not divide ``channels``. The message names the nearest
            numbers that do.
    """
    check_positive_int('num_heads', num_heads)
    if channels % num_heads:
        divisors = [heads for heads in range(1, channels + 1) if channels % heads == 0]
        below = [heads for heads in divisors if heads < num_heads][-1:]
        above = [heads for heads in divisors if heads > num_heads][:1]
        nearest = ' and '.join(str(heads) for heads in below + above)
        raise ValueError(
            f'{channels} channels do not split evenly into num_heads={num_heads}. '
            f'Nearest numbers of heads that divide them: {nearest}.'
        )


def split_heads(
    qkv: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values ``(N, heads, H * W, C / heads)`` of a map ``(N, 3 C, H, W)``."""
    heads = qkv.unflatten(1, (3, num_heads, -1)).flatten(4).transpose(-2, -1)
    # The kernels of linear memory want heads of adjacent numbers. A head of a single number would
    # pass for contiguous as it is.
    query, key, value = heads.clone(memory_format=torch.contiguous_format).unbind(1)
    return query, key, value


def attend(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``A(x) V``, the softmax attention of the heads.

    PyTorch computes it in memory linear in the number of positions where its backend can.

    Args:
        qkv (Tensor): Queries, keys and values ``(N, 3 C, H, W)``.
        num_heads (int): Number of heads.

    Returns:
        Tensor: A map ``(N, C, H, W)``.
    """
    n, channels, height, width = qkv.shape
    query, key, value = split_heads(qkv, num_heads)
    dynamic = F.scaled_dot_product_attention(query, key, value)
    return dynamic.transpose(-2, -1).reshape(n, channels // 3, height, width)


def values_of(qkv: torch.Tensor) -> torch.Tensor:
    """The values ``V``, a map ``(N, C, H, W)``, of queries, keys and values ``(N, 3 C, H, W)``."""
    return qkv.chunk(3, dim=1)[2]


@MODELS.register_module()
class MixedAffinity(nn.Module):
    """CONTAINER's mix: ``((alpha A(x) + beta A) V) W + x`` (arXiv 2106.01401).

    ``A(x)`` is dynamic, the softmax attention of ``num_heads`` heads; ``A`` is static, a depth-wise
    convolution. ``conv1`` projects ``x`` to queries, keys and values ``V``, ``conv`` is the
    convolution, ``conv2`` is ``W``. The learned scalars ``alpha`` and ``beta`` start at one half
    each, where the official code starts. ``alpha = 0`` is a convolution block, ``beta = 0``
    self-attention.

    The official code has one parameter ``sa_weight``, with ``alpha = sigmoid(sa_weight)`` and
    ``beta = 1 - alpha``; it is taken in place of the two.

    Args:
        in_channels (int): Channels of the input and output map.
        num_heads (int): Heads of the dynamic affinity. Defaults to 8.
        kernel_size (int): Odd size of the static affinity. Defaults to 5.

    Raises:
        ValueError: If ``num_heads`` does not divide ``in_channels`` or ``kernel_size`` is not a
            positive odd integer. The message names the nearest legal values.
    """

    _abbr_ = 'mixed_affinity'

    def __init__(self, in_channels: int, num_heads: int = 8, kernel_size: int = 5) -> None:
        super().__init__()
        check_positive_int('in_channels', in_channels)
        check_heads(in_channels, num_heads)
        check_odd(kernel_size)
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.conv1 = nn.Conv2d(in_channels, 3 * in_channels, 1)
        self.conv = nn.Conv2d(
            in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels
        )
        self.conv2 = nn.Conv2d(in_channels, in_channels, 1)
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if not torch.jit.is_scripting():
            check_map(self, x, self.conv1)
        qkv = self.conv1(x)
        # Neither matrix of positions by positions is made.
        dynamic, static = attend(qkv, self.num_heads), self.conv(values_of(qkv))
        return x + self.conv2(self.alpha * dynamic + self.beta * static)

    def dynamic_affinity(self, x: torch.Tensor) -> torch.Tensor:
        """The matrices ``A(x)`` of shape ``(N, heads, H * W, H * W)``, to look at on small maps.

        Each row, the weights with which a position takes in the others, sums to one.
        """
        query, key, _ = split_heads(self.conv1(x), self.num_heads)
        return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)

    def static_affinity(self, height: int, width: int) -> torch.Tensor:
        """The matrices ``A`` of shape ``(C, H * W, H * W)`` that the convolution stands for."""
        positions = height * width
        deltas = torch.eye(positions, dtype=self.conv.weight.dtype, device=self.conv.weight.device)
        deltas = deltas.view(positions, 1, height, width).expand(-1, self.conv.groups, -1, -1)
        columns = F.conv2d(
            deltas, self.conv.weight, padding=self.conv.padding, groups=self.conv.groups
        )
        return columns.flatten(2).permute(1, 2, 0)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if f'{prefix}sa_weight' in state_dict:
            alpha = state_dict.pop(f'{prefix}sa_weight').double().sigmoid()
            state_dict.update({f'{prefix}alpha': alpha, f'{prefix}beta': 1 - alpha})
        super()._load_from_state_dict(state_dict, prefix, *args)
