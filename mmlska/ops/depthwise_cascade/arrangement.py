"""Views and margins in which dilated kernels have no dilation, for the CPU form.

In channels_last a map of ``H x W`` positions is also one of ``H/d x dW`` positions, or one of
``H x W/d`` positions with ``dC`` channels: the same memory, in which neighbours along one axis
stand ``d`` apart. A 1-D kernel of dilation ``d`` has no dilation there.

Where ``d`` does not divide a side, the map has margins. They are zero whenever a kernel reaches
into them, which is what a convolution sees beyond the border anyway. The convolution before the
first dilated one makes them, by more padding than it needs, so that nothing is copied for them.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

Kernels = Sequence[Sequence[int]]


class Arrangement(NamedTuple):
    """How a cascade is computed on maps of one size.

    Attributes:
        size: Height and width of the map.
        dilations: Dilation of each convolution; 1 for a kernel of a single tap.
        undilated: For each convolution, whether it is to have no dilation.
        top: Rows of the margin above the map.
        bottom: Those below it.
        left: Columns of the margin to its left.
        right: Those to its right.
    """

    size: tuple[int, int]
    dilations: tuple[int, ...]
    undilated: tuple[bool, ...]
    top: int
    bottom: int
    left: int
    right: int

    @property
    def first(self) -> int:
        """Index of the convolution from which on maps have the margins."""
        return self.undilated.index(True) if True in self.undilated else len(self.undilated)

    @property
    def padding(self) -> tuple[int, int]:
        """What a convolution adds to its own padding, along both axes, to make the margins."""
        is_symmetric = self.top == self.bottom and self.left == self.right
        return (self.top, self.left) if is_symmetric else (0, 0)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """The map ``(N, C, H, W)`` with margins of zeros, or one that has margins as it is."""
        height, width = self.size
        padded_size = height + self.top + self.bottom, width + self.left + self.right
        if tuple(x.shape[2:]) == padded_size:
            return x
        return F.pad(x, (self.left, self.right, self.top, self.bottom))

    def crop(self, padded: torch.Tensor) -> torch.Tensor:
        """The map without its margins, a view; one that has none as it is."""
        return self.crop_columns(self.crop_rows(padded))

    def crop_rows(self, padded: torch.Tensor) -> torch.Tensor:
        """The map without the margins above and below it."""
        return padded[:, :, self.top : padded.shape[2] - self.bottom]

    def crop_columns(self, padded: torch.Tensor) -> torch.Tensor:
        """The map without the margins beside it."""
        return padded[:, :, :, self.left : padded.shape[3] - self.right]

    def clear(self, padded: torch.Tensor, axes: Sequence[int] = (2, 3)) -> None:
        """Make the margins of a map zero along these axes, in place."""
        margins = {2: (self.top, self.bottom), 3: (self.left, self.right)}
        for axis in axes:
            before, behind = margins[axis]
            if before:
                padded.narrow(axis, 0, before).zero_()
            if behind:
                padded.narrow(axis, padded.shape[axis] - behind, behind).zero_()


@functools.lru_cache(maxsize=4096)
def arrange(
    size: tuple[int, int],
    kernels: tuple[tuple[int, int], ...],
    dilations: tuple[int, ...],
    training: bool,
) -> Arrangement:
    """The arrangement for maps of a size ``(H, W)``, see :class:`Arrangement`; remembered.

    Args:
        size (tuple[int, int]): Height and width of the map.
        kernels (tuple): Height and width of each kernel.
        dilations (tuple[int, ...]): Dilation of each.
        training (bool): Whether there is a backward pass.
    """
    dilations = effective_dilations(kernels, dilations)
    pairs = list(zip(kernels, dilations, strict=True))
    undilated = tuple([_must_be_undilated(*pair, training) for pair in pairs])
    dilated = [pair for pair, flag in zip(pairs, undilated, strict=True) if flag]
    margins = []
    for axis in (0, 1):
        multiple = math.lcm(1, *[dilation for kernel, dilation in dilated if kernel[axis] > 1])
        margins += _margins(size[axis], multiple)
    return Arrangement(size, dilations, undilated, *margins)


def effective_dilations(kernels: Kernels, dilations: Sequence[int]) -> tuple[int, ...]:
    """The dilations of kernels of these heights and widths: a single tap has none."""
    pairs = zip(kernels, dilations, strict=True)
    return tuple([dilation if max(kernel) > 1 else 1 for kernel, dilation in pairs])


def is_short(kernel: Sequence[int], dilation: int) -> bool:
    """Whether oneDNN is fast forward for a kernel of this height and width despite its dilation."""
    return (max(kernel) - 1) * dilation < 16


def _must_be_undilated(kernel: Sequence[int], dilation: int, training: bool) -> bool:
    if training or dilation == 1:
        return dilation > 1
    # Forward, oneDNN is fast for kernels of one column, too, dilated or not.
    return kernel[1] > 1 and not is_short(kernel, dilation)


def _margins(side: int, multiple: int) -> tuple[int, int]:
    """What has to stand before and behind a side to make it a multiple.

    Both are the same, as what the padding of a convolution makes, wherever that is possible.
    """
    for margin in range(multiple):
        if (side + 2 * margin) % multiple == 0:
            return margin, margin
    return 0, -side % multiple


def undilate(x: torch.Tensor, kernel: Sequence[int], dilation: int) -> torch.Tensor:
    """The map in which a kernel of dilation ``d`` has none; 1-D kernels need no copy.

    A map ``(N, C, H, W)`` becomes ``(N, dC, H, W/d)`` for a row, ``(N, C, H/d, dW)`` for a column,
    ``(ddN, C, H/d, W/d)`` for a rectangle.
    """
    if dilation == 1:
        return x
    n, c, h, w = x.shape
    d = dilation
    last = x.permute(0, 2, 3, 1)
    if kernel[0] == 1:
        last = last.reshape(n, h, w // d, d * c)
    elif kernel[1] == 1:
        last = last.reshape(n, h // d, d * w, c)
    else:
        last = last.reshape(n, h // d, d, w // d, d, c).permute(0, 2, 4, 1, 3, 5)
        last = last.reshape(n * d * d, h // d, w // d, c)
    return last.permute(0, 3, 1, 2)


def redilate(view: torch.Tensor, x: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Undo :func:`undilate` for a map of the shape ``(N, C, H, W)`` of ``x``."""
    n, c, h, w = x.shape
    last = view.permute(0, 2, 3, 1)
    if kernel[0] > 1 and kernel[1] > 1:
        d = h // view.shape[2]
        last = last.reshape(n, d, d, h // d, w // d, c).permute(0, 3, 1, 4, 2, 5)
    return last.reshape(n, h, w, c).permute(0, 3, 1, 2)


def rows_of(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """Each row as a map of ``d`` columns, in which a horizontal kernel is vertical.

    A map ``(N, C, H, W)`` becomes ``(NH, C, W/d, d)``.
    """
    n, c, h, w = x.shape
    last = x.permute(0, 2, 3, 1).reshape(n * h, w // dilation, dilation, c)
    return last.permute(0, 3, 1, 2)
