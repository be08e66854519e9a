"""One attention turned into another: warm starts, their algebra, calibration and report."""

from .warm_start import WarmStart, convert_van

__all__ = ['WarmStart', 'convert_van']
