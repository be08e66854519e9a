"""How a large kernel is split into a local and a dilated one (arXiv 2202.09741, section 3.1)."""

from itertools import count

from .argument_checks import check_positive_int


def decompose_kernel(kernel_size: int, dilation: int | None = None) -> tuple[int, int, int]:
    r"""Split a large kernel into a local and a dilated depth-wise kernel.

    A convolution of size :math:`2d - 1` followed by one of size :math:`n` and dilation :math:`d`
    sees :math:`(2d - 1) + d (n - 1)` positions. With :math:`n = (k + 1) / d - 1` that is exactly
    :math:`k`; both kernels are centred if and only if :math:`n` is odd, that is, if
    :math:`(k + 1) / d` is an even integer.

    Args:
        kernel_size (int): Receptive field :math:`k` of the composition, in positions along an axis.
        dilation (int, optional): Dilation :math:`d`. None takes the paper's choice: 2 below
            ``kernel_size=23``, 3 from there. Defaults to None.

    Returns:
        tuple[int, int, int]: Local kernel, dilated kernel and dilation.

    Raises:
        ValueError: If no exact decomposition exists. The message names the nearest legal sizes.

    Example:
        >>> decompose_kernel(23)
        (5, 7, 3)
        >>> decompose_kernel(35)
        (5, 11, 3)
    """
    check_positive_int('kernel_size', kernel_size)
    if dilation is not None:
        check_positive_int('dilation', dilation)
    d = _default_dilation(kernel_size) if dilation is None else dilation
    if not _is_exact(kernel_size, d):
        chosen = f'dilation={d}' if dilation is not None else f'its default dilation {d}'
        raise ValueError(
            f'kernel_size={kernel_size} with {chosen} has no exact decomposition: '
            f'(kernel_size + 1) / dilation must be an even integer. '
            f'Nearest legal sizes: {_nearest(kernel_size, dilation)}.'
        )
    return 2 * d - 1, (kernel_size + 1) // d - 1, d


def _default_dilation(kernel_size: int) -> int:
    return 2 if kernel_size < 23 else 3


def _is_exact(kernel_size: int, dilation: int) -> bool:
    return (kernel_size + 1) % (2 * dilation) == 0


def _nearest(kernel_size: int, dilation: int | None) -> str:
    """The closest legal size on either side, as text."""

    def legal(k: int) -> bool:
        return _is_exact(k, dilation or _default_dilation(k))

    below = next((k for k in range(kernel_size - 1, 0, -1) if legal(k)), None)
    above = next(k for k in count(kernel_size + 1) if legal(k))
    return f'{above}' if below is None else f'{below} and {above}'
