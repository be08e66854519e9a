from .digit_scenes import DIGITS, make_digit_scenes

__all__ = ['DIGITS', 'make_digit_scenes']
