"""How a cascade of 1-D convolutions is computed by marches along its two axes.

A march applies one or two convolutions along the same axis. Horizontal and vertical convolutions
commute, biases aside, so that the order row, column, row, column of LSKA is two marches: both
horizontal ones, then both vertical ones. The second horizontal one then comes before the bias of
the first vertical one. A bias that is constant on the map becomes, through a convolution that sees
zeros beyond the border, one that depends on the column: the second march adds that one instead.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..call_context import is_compiling, why_special

ROWS, COLUMNS = 3, 2
# Values that a thread keeps for one position without running out of its 255 registers.
MOST_KEPT = 150


class Conv(NamedTuple):
    """A 1-D convolution of a cascade.

    Attributes:
        index: Its place in the cascade.
        size: Length of the kernel.
        dilation: Dilation along the kernel.
        bias: Place of the convolution whose bias is added behind it; None for none.
    """

    index: int
    size: int
    dilation: int
    bias: int | None

    @property
    def window(self) -> int:
        """Positions from the first to the last one that an output sees."""
        return (self.size - 1) * self.dilation + 1


class March(NamedTuple):
    """What is computed along one axis in one go.

    Attributes:
        axis: The axis of the map, 3 along rows, 2 along columns.
        first: The first convolution.
        second: The second one, or None.
        across: A convolution along the other axis that was moved to before the first one. What it
            makes of a bias, see ``bias`` there, is added behind the first one.
    """

    axis: int
    first: Conv
    second: Conv | None = None
    across: Conv | None = None

    @property
    def reach(self) -> int:
        """Positions that an output sees on either side of its own."""
        return sum(conv.window // 2 for conv in (self.first, self.second) if conv)

    def kept_forward(self) -> int:
        """Values that are kept for each position of a tile: windows, kernels, biases."""
        return sum(conv.window + conv.size + 1 for conv in (self.first, self.second) if conv)

    def kept_backward(self, for_input: bool, for_weights: bool) -> int:
        """The same in the backward pass, with the gradients that are summed up."""
        first, second = self.first, self.second
        kept = second.window + second.size if second else 0
        if for_input:
            kept += first.window + first.size
        if for_weights:
            kept += first.window + first.size + 1
            if second:
                kept += first.size * (not for_input) + second.size + 2
        return kept

    def kept_at_least(self) -> int:
        """The most that any pass keeps, where the backward pass computes one thing at a time."""
        back = self.kept_backward(True, False), self.kept_backward(False, True)
        return max(self.kept_forward(), *back)


def plan(kernels: Sequence[tuple[int, int]], dilations: Sequence[int]) -> tuple[March, ...]:
    """The marches that compute a cascade.

    Args:
        kernels (Sequence[tuple[int, int]]): Heights and widths of the kernels.
        dilations (Sequence[int]): Dilation of each, along both axes.

    Returns:
        tuple[March, ...]: One or two marches; none if the cascade is not of these: a row or a
            column; a row, then a column; row, column, row, column; nor if a kernel is so long that
            a thread has too few registers for what it keeps.
    """
    marches = _arrange(kernels, dilations)
    fit = all(march.kept_at_least() <= MOST_KEPT for march in marches)
    return marches if fit else ()


def _arrange(kernels: Sequence[tuple[int, int]], dilations: Sequence[int]) -> tuple[March, ...]:
    """The marches of :func:`plan`, however many values they keep."""
    heights, widths = [k[0] for k in kernels], [k[1] for k in kernels]
    sizes = [max(kernel) for kernel in kernels]
    if any(size % 2 == 0 for size in heights + widths):
        return ()

    def conv(index: int, bias: int | None) -> Conv:
        return Conv(index, sizes[index], dilations[index], bias)

    rows, columns = heights[0::2], widths[1::2]
    if len(kernels) == 1 and widths == [1]:
        return (March(COLUMNS, conv(0, 0)),)
    if any(size > 1 for size in (*rows, *columns)):
        return ()
    if len(kernels) == 1:
        return (March(ROWS, conv(0, 0)),)
    if len(kernels) == 2:
        return (March(ROWS, conv(0, 0)), March(COLUMNS, conv(1, 1)))
    if len(kernels) == 4:
        rows_first = March(ROWS, conv(0, 0), conv(2, None))
        return (rows_first, March(COLUMNS, conv(1, 2), conv(3, 3), across=conv(2, 1)))
    return ()


def plan_of(weights: Sequence[torch.Tensor], dilations: Sequence[int]) -> tuple[March, ...]:
    """:func:`plan` for kernels ``(C, 1, kh, kw)``."""
    # Compilers warn of what remembers, and symbols cannot be remembered.
    plain = bool(weights) and not is_compiling() and not why_special(weights[0])
    find = _remembered_plan if plain else _plan_of_shapes
    return find(tuple([weight.shape for weight in weights]), tuple(dilations))


def _plan_of_shapes(shapes: Sequence[Sequence[int]], dilations: Sequence[int]) -> tuple[March, ...]:
    return plan(tuple(tuple(shape[2:]) for shape in shapes), tuple(dilations))


_remembered_plan = functools.lru_cache(maxsize=256)(_plan_of_shapes)
