"""A memory layout that mmcv's operators misread."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmlska.engine.bare_model import bare_model
from mmlska.models.backbones.base import StagedBackbone
from mmlska.registry import HOOKS

# mmcv's operators that index a map as if it were contiguous: tried on the CPU, mmcv 2.3.6.
MISREADING = {'RoIAlign', 'RoIAlignRotated', 'DeformConv2d', 'ModulatedDeformConv2d'}


def check_layout(model: nn.Module) -> None:
    """Find weights in channels_last in a model with operators of mmcv that need contiguous maps.

    Of a map in channels_last they return wrong values, most of them without an error, and a
    detector that was put into that layout for speed learns nothing. Only the backbones of this
    package may be: they hand out contiguous maps.

    Args:
        model (nn.Module): A detector or segmentor.

    Raises:
        ValueError: If there are such weights. The message names the remedy.
    """
    operator = next((name for name, module in model.named_modules() if _misreads(module)), None)
    if operator is None:
        return
    own = isinstance(getattr(model, 'backbone', None), StagedBackbone)
    for name, weight in model.named_parameters():
        if _is_channels_last(weight) and not (own and name.startswith('backbone.')):
            raise ValueError(
                f'{name} is in channels_last, and mmcv reads the maps that it makes wrongly: '
                f'{operator} needs contiguous ones. Put model.backbone alone into channels_last, '
                'or the model back: model.to(memory_format=torch.contiguous_format)'
            )


def _misreads(module: nn.Module) -> bool:
    return any(
        kind.__name__ in MISREADING and kind.__module__.startswith('mmcv.ops.')
        for kind in type(module).__mro__
    )


def _is_channels_last(weight: torch.Tensor) -> bool:
    """Whether it is in that layout alone: a kernel of one position is in both."""
    return (
        weight.dim() == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
    )


@HOOKS.register_module()
class LayoutCheckHook(Hook):
    """Stop a run whose detector would read its maps wrongly, see :func:`check_layout`."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Check the model.

        Raises:
            ValueError: If a part is in a layout that mmcv misreads.
        """
        check_layout(bare_model(runner))
