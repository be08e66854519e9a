"""Several attention layers at one place: a container of our own, after no paper."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

import torch
from torch import nn

from mmlska.registry import MODELS

from .build import build_plugins
from .input_check import check_map


@MODELS.register_module()
class AttentionSequence(nn.Sequential):
    """Attention layers one after the other, as one layer.

    MMSegmentation's ResNet runs only the last of several plugins at one position. Inside this layer
    all of them run, there and everywhere else.

    Args:
        in_channels (int): Channels of the input and output map.
        layers (Sequence[dict]): Configs of the layers in the order in which they act. Where two are
            of one kind, one needs a ``postfix``.

    Raises:
        ValueError: If there are no layers, or two of them would bear the same name.

    Example:
        >>> AttentionSequence(64, [dict(type='LSKA'), dict(type='ECA')]).eca.kernel_size
        3
    """

    _abbr_ = 'attention_sequence'

    def __init__(self, in_channels: int, layers: Sequence[dict]) -> None:
        if not layers:
            raise ValueError("layers must hold at least one config, such as dict(type='ECA')")
        super().__init__(OrderedDict(build_plugins(layers, in_channels).named_children()))
        self.in_channels = in_channels
        self.length = len(layers)

    def init_weights(self) -> None:
        """Let each layer start as it wants, where a surrounding model has initialised all."""
        for layer in islice(self, self.length):
            if hasattr(layer, 'init_weights'):
                layer.init_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        if torch.jit.is_scripting():
            for layer in self:
                x = layer(x)
        else:
            check_map(self, x)
            # A derived class may register more modules; these are the layers.
            for layer in islice(self, self.length):
                x = layer(x)
        return x
