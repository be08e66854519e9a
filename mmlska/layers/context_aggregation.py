"""Global context at the price of a few 1x1 convolutions.

ContextAggregation is the spatial context block of "Learning to Aggregate Multi-Scale Context for
Instance Segmentation in Remote Sensing Images" (CATNet, arXiv 2111.11057), written from its
equation. The official code, github.com/yeliudev/CATNet at 64775d0, is under GPL-3.0: none of it
stands here, only the names of its weights are known.

It has nothing to do with CONTAINER (arXiv 2106.01401), whose mixing of affinities is
:class:`mmlska.layers.MixedAffinity`.
"""

import torch
from torch import nn

from mmlska.layers.official_names import take_official_names
from mmlska.ops.argument_checks import check_positive_int
from mmlska.registry import MODELS

from .input_check import check_map
from .weight_init import init_xavier, init_zero

# The official code wraps each convolution, so that its weights are called 'a.conv.weight'.
OFFICIAL_NAMES = [(r'^([akvm])\.conv\.', r'\1.')]


@MODELS.register_module()
class ContextAggregation(nn.Module):
    r"""One global context vector, added to every position through a gate of its own.

    .. math:: y_i = x_i + \sigma(a(x_i)) \, m\Big(\sum_j \mathrm{softmax}_j(k(x)) \, v(x_j)\Big)

    (CATNet, arXiv 2111.11057). ``a`` and ``k`` are 1x1 convolutions to one channel, ``v`` reduces
    the channels and ``m`` restores them; all have a bias. ``m`` starts at zero, so that a new layer
    is the identity and can be put into a trained model.

    Time and memory are linear in H * W: all positions share one attention map. The softmax runs in
    float32 under mixed precision, where the weight of one position of a large map would vanish.

    Args:
        in_channels (int): Channels of the input and output map.
        reduction (int): ``v`` has ``max(in_channels // reduction, 1)`` channels. Defaults to 1.

    Raises:
        ValueError: If ``in_channels`` or ``reduction`` is not a positive integer.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 8, 5, 7)
        >>> torch.equal(ContextAggregation(8)(x), x)
        True
    """

    _abbr_ = 'context_aggregation'

    def __init__(self, in_channels: int, reduction: int = 1) -> None:
        super().__init__()
        check_positive_int('in_channels', in_channels)
        check_positive_int('reduction', reduction)
        self.in_channels = in_channels
        inter_channels = max(in_channels // reduction, 1)
        self.a = nn.Conv2d(in_channels, 1, 1)
        self.k = nn.Conv2d(in_channels, 1, 1)
        self.v = nn.Conv2d(in_channels, inter_channels, 1)
        self.m = nn.Conv2d(inter_channels, in_channels, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the identity, also where a surrounding model has initialised all its layers."""
        init_xavier(self.a, self.k, self.v)
        init_zero(self.m)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if not torch.jit.is_scripting():
            check_map(self, x, self.k)
        # v is linear and the weights sum to one: the mean of v(x) is v of the mean, without a map.
        mean = weighted_mean(x, self.k(x))
        return torch.addcmul(x, self.a(x).sigmoid(), self.m(self.v(mean)))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        take_official_names(self, state_dict, prefix, OFFICIAL_NAMES)
        super()._load_from_state_dict(state_dict, prefix, *args)


def weighted_mean(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean ``(N, C, 1, 1)`` of a map, weighted by the softmax of logits ``(N, 1, H, W)``."""
    precision = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.flatten(1).softmax(1, dtype=precision).view_as(logits)
    return (x * weights).sum((2, 3), keepdim=True).to(x.dtype)
