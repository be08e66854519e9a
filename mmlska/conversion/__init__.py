"""Weights turned into others: warm starts, their algebra, calibration and report; stems."""

from .pretrained_backbone import PretrainedBackbone
from .warm_start import WarmStart, convert_van

__all__ = ['PretrainedBackbone', 'WarmStart', 'convert_van']
