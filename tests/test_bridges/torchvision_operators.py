"""Let torchvision import beside a PyTorch that its operators were not built for.

A wheel with CUDA does not load its operators beside a PyTorch without. Its import wants the names
of some, and Ultralytics calls one, which stands here in Python.
"""

import sys
import types

import torch


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order, kept = scores.argsort(descending=True), []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[shared / (areas[best] + areas[order] - shared) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)


def name_operators() -> None:
    sys.modules['torchvision._meta_registrations'] = types.ModuleType('_meta_registrations')
    name_operators.library = torch.library.Library('torchvision', 'DEF')
    name_operators.library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    name_operators.library.impl('nms', nms, 'CPU')
    from torchvision import extension

    extension._has_ops = lambda: True


try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for module in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
        del sys.modules[module]
    name_operators()
