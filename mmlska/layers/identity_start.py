"""A layer that enters a trained network without changing it.

One learned factor a branch that starts at zero is ReZero (arXiv 2003.04887, "ReZero is All You
Need: Fast Convergence at Large Depth"); one a channel is LayerScale (arXiv 2103.17239). Here the
branch is what a layer changes. Written from the equations; no code was taken over.
"""

import torch
from torch import nn

from mmlska.ops.argument_checks import check_positive_int
from mmlska.registry import MODELS

from .build import build_layer
from .context_aggregation import ContextAggregation
from .input_check import check_map
from .weight_init import init_xavier


@MODELS.register_module()
class IdentityStart(nn.Module):
    r"""Any attention layer ``f``, blended in from nothing.

    .. math:: y = x + g \cdot (f(x) - x)

    with one learned :math:`g` for each channel. At :math:`g = 0`, where it starts, ``y`` equals
    ``x`` to the bit, in float32, bfloat16 and float16 alike: the product is zero, and adding zero
    rounds nothing; only a negative zero may become a positive one, its equal. It needs a finite
    :math:`f(x) - x`, for zero times infinity is no number. At :math:`g = 1` it is ``f`` alone.

    The gradient of :math:`g` is the sum of :math:`(f(x) - x) \, \partial L / \partial y` and not
    zero unless ``f`` is the identity; that of the weights of ``f`` is zero until :math:`g` has
    moved. A :class:`ContextAggregation`, which starts as the identity by itself, would never learn
    then, so its last convolution starts here as the others do. Pass no other layer that does so.

    Weight decay pulls :math:`g` back to the start. Without, as for norms and biases:
    ``optim_wrapper=dict(paramwise_cfg=dict(flat_decay_mult=0.0))`` for all parameters of one axis,
    or ``paramwise_cfg=dict(custom_keys={'identity_start.g': dict(decay_mult=0.0)})`` for a plugin
    alone; where it is the attention of a VAN the key is ``'spatial_gating_unit.g'``.

    Args:
        in_channels (int): Channels of the input and output map.
        attention (dict): Config of the layer ``f``.

    Raises:
        ValueError: If ``in_channels`` is not a positive integer, or the layer starts as the
            identity itself.

    Example:
        >>> import torch
        >>> layer = IdentityStart(8, attention=dict(type='LSKA'))
        >>> x = torch.rand(1, 8, 5, 7)
        >>> torch.equal(layer(x), x)
        True
    """

    _abbr_ = 'identity_start'

    def __init__(self, in_channels: int, attention: dict) -> None:
        super().__init__()
        check_positive_int('in_channels', in_channels)
        self.in_channels = in_channels
        self.attention = build_layer(attention, in_channels)
        if any(isinstance(module, IdentityStart) for module in self.attention.modules()):
            raise ValueError(
                'an IdentityStart inside another one would never learn: each waits for the other. '
                f'Give the inner layer alone, but got attention={attention!r}'
            )
        self.g = nn.Parameter(torch.zeros(in_channels))
        self._start()

    def init_weights(self) -> None:
        """Start as the identity, also where a surrounding model has initialised all its layers."""
        if hasattr(self.attention, 'init_weights'):
            self.attention.init_weights()
        self._start()

    def _start(self) -> None:
        nn.init.zeros_(self.g)
        for module in self.attention.modules():
            if isinstance(module, ContextAggregation):
                init_xavier(module.m)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``, in the number type of ``x``."""
        if not torch.jit.is_scripting():
            check_map(self, x)
        change = self.attention(x).to(x.dtype) - x
        return torch.addcmul(x, self.g.to(x.dtype)[:, None, None], change)
