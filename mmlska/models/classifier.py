"""VAN with a head: a classifier with the contract of timm's models, which needs no timm."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mmlska.ops.argument_checks import check_positive_int
from mmlska.registry import MODELS

from .backbones import VAN

POOLS = ('avg', '')


@MODELS.register_module()
class VANClassifier(VAN):
    """A VAN whose last map is averaged and classified, as in the official classification code.

    Weights bear the names of :class:`VAN`, and ``head.weight`` and ``head.bias``: the official
    classification files of VAN and LSKA load whole, with their head.

    Args:
        num_classes (int): Classes; 0 leaves the head out. Defaults to 1000.
        global_pool (str): 'avg' averages the last map over all positions, '' hands it to the head
            as it is, for which ``num_classes`` must be 0. Defaults to 'avg'.
        **options: Those of :class:`VAN`, without ``out_indices``.

    Raises:
        ValueError: If ``num_classes`` or ``global_pool`` is not possible, or an option of
            :class:`VAN` is not.

    Example:
        >>> import torch
        >>> model = VANClassifier(num_classes=5, arch='tiny')
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 5])
        >>> [info['num_chs'] for info in model.feature_info]
        [32, 64, 160, 256]
    """

    def __init__(self, num_classes: int = 1000, global_pool: str = 'avg', **options: Any) -> None:
        if 'out_indices' in options:
            raise ValueError('out_indices is no option of a classifier, which needs the last map')
        super().__init__(**options)
        self.num_features = self.head_hidden_size = self.embed_dims[-1]
        self.feature_info = [
            dict(num_chs=channels, reduction=2 ** (i + 2), module=f'after_stage{i + 1}')
            for i, channels in enumerate(self.embed_dims)
        ]
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or the identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head with random weights in place of the old one.

        Args:
            num_classes (int): Classes; 0 leaves the head out.
            global_pool (str, optional): See the class. Defaults to None: as before.

        Raises:
            ValueError: If one of them is not possible, or both together are not.
        """
        if num_classes != 0:
            check_positive_int('num_classes', num_classes)
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in POOLS or (pool == '' and num_classes):
            raise ValueError(
                f'global_pool={pool!r} with num_classes={num_classes} is not possible: allowed are '
                "'avg', and '' without classes"
            )
        self.num_classes, self.global_pool = num_classes, pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if num_classes:
            # As the official classification code.
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, in_channels, H, W)`` to the last map ``(N, C, H / 32, W / 32)``."""
        return super().forward(x)[-1]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last map to logits ``(N, num_classes)``, or to what the head would get."""
        if self.global_pool == 'avg':
            x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Maps of some stages, by the contract of timm.

        Args:
            x (Tensor): Images ``(N, in_channels, H, W)``.
            indices (int | Sequence[int], optional): Stages, or how many of the last ones.
                Defaults to None: all.
            norm (bool): Every stage ends in its norm, so that this changes nothing.
            stop_early (bool): Leave out the stages after the last index.
            output_fmt (str): 'NCHW', the only one.
            intermediates_only (bool): Return the maps alone.

        Returns:
            The maps, or the last map that was computed and the maps.

        Raises:
            ValueError: If an index or the format is not possible.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt={output_fmt!r} is not possible: allowed is 'NCHW'")
        wanted = _resolve_stages(indices, self.num_stages)
        maps = []
        last = max(wanted) if stop_early or intermediates_only else self.num_stages - 1
        for stage in range(last + 1):
            x = self.forward_stage(stage, x)
            if stage in wanted:
                maps.append(x.contiguous())
        return maps if intermediates_only else (x.contiguous(), maps)

    def is_head(self, key: str) -> bool:
        """Whether a weight of the file belongs to a head that this model does not have."""
        return super().is_head(key) and key not in self.state_dict()

    def note_origin(self, keys: list[str]) -> None:
        """Warn of a head under the name of another codebase, too."""
        super().note_origin(keys)
        if self.num_classes and not any(key.startswith('head.') for key in keys):
            print_log(
                'the file has no head.weight: convert it by tools/model_converters/to_mmlska.py, '
                'or load it with num_classes=0 and call reset_classifier',
                'current',
                logging.WARNING,
            )


def _resolve_stages(indices: int | Sequence[int] | None, total: int) -> list[int]:
    """Stages that indices of timm mean."""
    if indices is None:
        return list(range(total))
    given = range(total - indices, total) if isinstance(indices, int) else indices
    stages = [index + total if index < 0 else index for index in given]
    if not stages or not all(0 <= stage < total for stage in stages):
        raise ValueError(
            f'indices={indices!r} is not possible: there are {total} stages, 0 to {total - 1}'
        )
    return stages
