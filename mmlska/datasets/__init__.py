"""Data for demos and instruments: scenes of digits, pictures of exchanged textures, corruptions."""

from .corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES, CorruptImage, corrupt
from .digit_scenes import DIGITS, make_digit_scenes

__all__ = [
    'BENCHMARK',
    'CORRUPTIONS',
    'DIGITS',
    'SEVERITIES',
    'CorruptImage',
    'corrupt',
    'make_digit_scenes',
]
