"""Detectors with their post-processing as one graph, for ``torch.export`` and ONNX."""

from .graphs import DetectionGraph, detection_graph
from .translations import custom_translation_table

__all__ = ['DetectionGraph', 'custom_translation_table', 'detection_graph']
