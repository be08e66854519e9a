"""Attention on every level of a feature pyramid.

:class:`SpatialContextPyramid` is of "Learning to Aggregate Multi-Scale Context for Instance
Segmentation in Remote Sensing Images" (CATNet, arXiv 2111.11057), written from its equation; its
official code, yeliudev/CATNet at commit 64775d0, is GPL-3.0 and nothing is taken from it.
"""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule, ModuleList

from mmlska.checkpoint import unwrap
from mmlska.layers.build import build_layer
from mmlska.layers.official_names import take_official_names
from mmlska.ops.argument_checks import check_positive_int
from mmlska.registry import MODELS

# Whatever a detector and its neck are called, a weight of a level ends like this.
OFFICIAL_NAMES = [(r'^.*?(\d+)\.([akvm])\.(?:conv\.)?(weight|bias)$', r'levels.\1.\2.\3')]


@MODELS.register_module()
class PyramidAttention(BaseModule):
    """One attention layer for each level of a pyramid, each with weights of its own.

    It follows the neck that makes the pyramid:
    ``neck=[dict(type='FPN', ...), dict(type='mmlska.PyramidAttention', ...)]``.

    Args:
        attention (dict): Config of the attention layer.
            Defaults to ``dict(type='ContextAggregation')``.
        in_channels (int | Sequence[int]): Channels of the maps, one number for all of them or one a
            level. Defaults to 256, as most pyramids have.
        num_outs (int): Number of levels. Defaults to 5.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to None:
            the layers' own.

    Raises:
        ValueError: If a number is not positive, or ``in_channels`` does not have one a level.

    Example:
        >>> import torch
        >>> neck = PyramidAttention(dict(type='ECA'), in_channels=8, num_outs=2)
        >>> [tuple(x.shape) for x in neck((torch.rand(1, 8, 6, 4), torch.rand(1, 8, 3, 2)))]
        [(1, 8, 6, 4), (1, 8, 3, 2)]
    """

    def __init__(
        self,
        attention: dict = dict(type='ContextAggregation'),
        in_channels: int | Sequence[int] = 256,
        num_outs: int = 5,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_positive_int('num_outs', num_outs)
        self.num_outs = num_outs
        self.in_channels = spread_channels(in_channels, num_outs)
        self.levels = ModuleList(build_layer(attention, c) for c in self.in_channels)

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Apply each level's layer.

        Args:
            inputs (Sequence[Tensor]): A map ``(N, C_i, H_i, W_i)`` for each level.

        Returns:
            tuple[Tensor]: Maps of the same shapes.

        Raises:
            ValueError: If there are more or fewer maps than levels, or they have other channels.
        """
        channels = [x.shape[1] for x in inputs]
        if channels != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} is built for {self.num_outs} maps with {self.in_channels} '
                f'channels, but gets {len(channels)} with {channels}. '
                f'Set num_outs={len(channels)}, in_channels={channels}'
            )
        return tuple(level(x) for level, x in zip(self.levels, inputs, strict=True))


@MODELS.register_module()
class SpatialContextPyramid(PyramidAttention):
    """CATNet's spatial context pyramid (SCP): a ContextAggregation on each level.

    A new one is the identity, so that it can be put into a trained detector (arXiv 2111.11057). The
    official weights are taken under their own names, alone or inside a detector.

    Args:
        in_channels (int | Sequence[int]): Channels of the maps, one number for all of them or one a
            level.
        num_outs (int): Number of levels. Defaults to 5.
        reduction (int): See :class:`mmlska.models.ContextAggregation`. Defaults to 1.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to None.

    Raises:
        ValueError: If a number is not positive, or ``in_channels`` does not have one a level.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_outs: int = 5,
        reduction: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        attention = dict(type='ContextAggregation', reduction=reduction)
        super().__init__(attention, in_channels, num_outs, init_cfg)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if not prefix:
            weights = dict(unwrap(state_dict))
            state_dict.clear()
            state_dict.update(weights)
        take_official_names(self, state_dict, prefix, OFFICIAL_NAMES)
        super()._load_from_state_dict(state_dict, prefix, *args)


def spread_channels(in_channels: int | Sequence[int], num_outs: int) -> list[int]:
    """Channels of each level.

    Raises:
        ValueError: If they are not positive, or not one a level.
    """
    channels = [in_channels] * num_outs if isinstance(in_channels, int) else list(in_channels)
    for value in channels:
        check_positive_int('in_channels', value)
    if len(channels) != num_outs:
        raise ValueError(
            f'in_channels={in_channels} is for {len(channels)} levels, but num_outs={num_outs}: '
            f'give one number for all levels, or {num_outs} of them'
        )
    return channels
