"""Any model as one graph from image to result, and what writing that graph as ONNX needs."""

from collections.abc import Callable

from torch import nn

from .detection_graphs import DetectionGraph, custom_translation_table, detection_graph
from .plain_graphs import SegmentationGraph, exportable


def end_to_end_graph(model: nn.Module) -> nn.Module:
    """The graph of a segmentor up to its label map, of a detector up to boxes, labels and masks.

    Args:
        model (nn.Module): A segmentor of mmseg or a detector of mmdet. It is left as it is.

    Raises:
        TypeError: If there is no graph of this detector, or of one of its parts.
    """
    if hasattr(model, 'encode_decode'):
        return SegmentationGraph(model)
    return detection_graph(exportable(model))


def translations_of(graph: nn.Module) -> dict[Callable, Callable]:
    """How the operators of a graph that are not PyTorch's are written as ONNX."""
    return custom_translation_table() if isinstance(graph, DetectionGraph) else {}
