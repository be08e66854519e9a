from collections import OrderedDict
from collections.abc import Sequence

from mmengine.model import Sequential

from mmlska.registry import MODELS

from .build import build_plugins


@MODELS.register_module()
class AttentionSequence(Sequential):
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
