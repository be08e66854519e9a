"""Data for demos and instruments: digit scenes, exchanged textures, corruptions; channels."""

from .channels import SelectChannels
from .corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES, CorruptImage, corrupt
from .digit_scenes import DIGITS, make_digit_scenes

__all__ = [
    'BENCHMARK',
    'CORRUPTIONS',
    'DIGITS',
    'SEVERITIES',
    'CorruptImage',
    'SelectChannels',
    'corrupt',
    'make_digit_scenes',
]
