from .faster_coco import FasterCocoMetric

__all__ = ['FasterCocoMetric']
