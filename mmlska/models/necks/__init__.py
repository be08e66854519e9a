"""Necks that follow a pyramid."""

from .pyramid_attention import PyramidAttention, SpatialContextPyramid

__all__ = ['PyramidAttention', 'SpatialContextPyramid']
