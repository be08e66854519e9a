"""Metrics that a config names."""

from .faster_coco import FasterCocoMetric

__all__ = ['FasterCocoMetric']
