"""Boxes of a detector in float32 under bfloat16."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from mmlska.engine.bare_model import bare_model
from mmlska.registry import HOOKS


def widen(values: Any) -> Any:
    """Cast the bfloat16 tensors of nested tuples, lists and dicts to float32."""
    return tree_map_only(torch.Tensor, _widened, values)


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def keep_boxes_in_float32(model: nn.Module) -> list[RemovableHandle]:
    """Let a detector compute boxes and losses in float32 while autocast chooses bfloat16.

    Two kinds of modules are concerned. The heads give float32 to what follows them: mmdet makes
    anchors in the type of a head's scores, which in bfloat16 rounds their corners by up to four
    pixels, and mmcv's focal loss and NMS have no kernel for bfloat16. The extractors of regions get
    float32, for they round the boxes in the same way, and RoIAlign has no such kernel either.

    Args:
        model (nn.Module): A detector; a segmentor has no such parts and stays as it is.

    Returns:
        Handles that take the casts away again.
    """
    handles = []
    for module in model.modules():
        if hasattr(module, 'predict_by_feat'):
            handles.append(module.register_forward_hook(lambda _, args, output: widen(output)))
        elif hasattr(module, 'roi_layers'):
            handles.append(module.register_forward_pre_hook(lambda _, args: widen(args)))
    return handles


@HOOKS.register_module()
class Float32BoxesHook(Hook):
    """Train detectors in bfloat16 mixed precision, see :func:`keep_boxes_in_float32`."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Register the casts."""
        self.handles = keep_boxes_in_float32(bare_model(runner))

    def after_train(self, runner: Runner) -> None:
        """Remove them."""
        for handle in self.handles:
            handle.remove()
