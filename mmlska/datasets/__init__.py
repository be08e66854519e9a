"""Data made without a download: scenes of digits for the demo and for tests."""

from .digit_scenes import DIGITS, make_digit_scenes

__all__ = ['DIGITS', 'make_digit_scenes']
