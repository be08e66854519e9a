from numbers import Integral


def check_positive_int(name: str, value: int) -> None:
    """Refuse anything but an integer from 1.

    Raises:
        ValueError: If ``value`` is another. The message names the option.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name} must be a positive integer, but got {value!r}')


def check_odd(kernel_size: int) -> None:
    """Refuse a kernel without a centre.

    Raises:
        ValueError: If ``kernel_size`` is no positive odd integer. The message names the nearest.
    """
    check_positive_int('kernel_size', kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(
            f'kernel_size={kernel_size} has no centre: it must be odd. '
            f'Nearest legal sizes: {kernel_size - 1} and {kernel_size + 1}.'
        )
