"""How a cascade of 1-D convolutions is computed by marches along its two axes.

A march applies one or two convolutions along the same axis. Horizontal and vertical convolutions
commute, biases aside, so that the order row, column, row, column of LSKA is two marches: both
horizontal ones, then both vertical ones. The second horizontal one then comes before the bias of
the first vertical one. A bias that is constant on the map becomes, through a convolution that sees
zeros beyond the border, one that depends on the column: the second march adds that one instead.
"""

import functools
from collections.abc import Mapping, Sequence
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


class StepBack(NamedTuple):
    """What is computed of the gradients of a cascade by going through one of its marches.

    Attributes:
        march: The march.
        map: Its place among the marches: which map it reads.
        for_input: Whether the gradient of that map is computed.
        for_weights: Whether those of its parameters are.
        kept: Values that are kept for each position of a tile.
        constants: What the kernel is compiled for, besides the convolutions: whether the second one
            has a bias, ``for_input``, ``for_weights``; how many columns of the sums of the whole
            cascade are before its own, its own, and behind these.
    """

    march: March
    map: int
    for_input: bool
    for_weights: bool
    kept: int
    constants: tuple[bool, bool, bool, int, int, int]


class Back(NamedTuple):
    """How the gradients of a cascade are computed.

    Attributes:
        steps: What is computed one after the other.
        columns: Place of each parameter behind the map, all weights before all biases, in the order
            in which their gradients are summed up, and values of each for a channel.
    """

    steps: tuple[StepBack, ...]
    columns: Mapping[int, int]


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
    find = _remembered_plan if plain else plan_of_shapes
    return find(tuple([weight.shape for weight in weights]), tuple(dilations))


def plan_of_shapes(shapes: Sequence[Sequence[int]], dilations: Sequence[int]) -> tuple[March, ...]:
    """:func:`plan` for kernels of shapes ``(C, 1, kh, kw)``."""
    return plan(tuple(tuple(shape[2:]) for shape in shapes), tuple(dilations))


_remembered_plan = functools.lru_cache(maxsize=256)(plan_of_shapes)


def plan_back(marches: Sequence[March], biased: Sequence[bool], needed: Sequence[bool]) -> Back:
    """How the gradients of a cascade are computed.

    Args:
        marches (Sequence[March]): Those that compute it.
        biased (Sequence[bool]): Which of its convolutions have a bias.
        needed (Sequence[bool]): Which gradients: of the map, of all weights, of all biases.
    """
    sums = [_sums_of(march, biased) for march in marches]
    # The second march goes on with a kernel that the first one ends with, if it shares one.
    columns = {place: count for own in sums for place, count in own.items()}
    places, width = tuple(columns), sum(columns.values())
    steps = []
    for i, march in reversed(list(enumerate(marches))):
        before = sum(columns[place] for place in places[: places.index(next(iter(sums[i])))])
        own = sum(sums[i].values())
        around = before, own, width - before - own
        for_input = needed[0] or any(needed[place] for earlier in sums[:i] for place in earlier)
        for_weights = any(needed[place] for place in sums[i])
        biased_second = march.second is not None and march.second.bias is not None
        for flags in _passes(march, for_input, for_weights):
            kept = march.kept_backward(*flags)
            steps.append(StepBack(march, i, *flags, kept, (biased_second, *flags, *around)))
        if not for_input:
            break
    return Back(tuple(steps), columns)


def _passes(march: March, for_input: bool, for_weights: bool) -> list[tuple[bool, bool]]:
    """The same flags, one at a time where a thread has too few registers for both."""
    if for_input and for_weights and march.kept_backward(True, True) > MOST_KEPT:
        return [(False, True), (True, False)]
    return [(for_input, for_weights)]


def _sums_of(march: March, biased: Sequence[bool]) -> dict[int, int]:
    """The parameters that a march sums gradients up for, by place, and values for a channel.

    They stand in the order in which its kernel writes them. Of what is moved across there is only
    what a bias makes.
    """
    number = len(biased)
    across = march.across if march.across and biased[march.across.bias] else None
    found = {1 + across.index: across.size} if across else {}
    for conv in filter(None, (march.first, march.second)):
        found[1 + conv.index] = conv.size
        if conv.bias is not None:
            found[1 + number + conv.bias] = 1
    if across:
        found[1 + number + across.bias] = 1
    return found
