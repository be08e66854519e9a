"""Least squares for the convolutions of LKA and LSKA, on the maps that they see.

The attention is ``x * conv1(cascade(x))``. The answer of the cascade is linear in the taps and the
bias of each of its convolutions while the others are held, a small problem for every channel;
``conv1`` is one problem for all.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.functional import conv2d, unfold

from .kernel_algebra import least_squares_step

# Numbers in the largest tensor that a fit works with at a time.
CHUNK = 2**25

Maps = Sequence[torch.Tensor]


def run(convs: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Apply convolutions one after the other."""
    for conv in convs:
        x = conv(x)
    return x


@torch.no_grad()
def fit_cascade(
    cascade: Sequence[nn.Conv2d], maps: Maps, targets: Maps, ridge: float = 1e-6
) -> None:
    """Fit each depth-wise convolution of a cascade in turn, in place; no fit raises the distance.

    Args:
        cascade (Sequence[nn.Conv2d]): Depth-wise convolutions that keep the size of the map.
        maps (Sequence[Tensor]): What the cascade takes, batches ``(N, C, H, W)``.
        targets (Sequence[Tensor]): What it is to answer, of the same shapes.
        ridge (float): How firmly the taps are held near their present values; anything above zero
            leaves those alone that never meet the map. Defaults to 1e-6.
    """
    for i in range(len(cascade)):
        _fit_depthwise(cascade, i, maps, targets, ridge)


def _fit_depthwise(
    cascade: Sequence[nn.Conv2d], index: int, maps: Maps, targets: Maps, ridge: float
) -> None:
    conv, tail = cascade[index], cascade[index + 1 :]
    channels, taps = len(conv.weight), conv.weight[0].numel()
    gram = torch.zeros(channels, taps + 1, taps + 1, dtype=torch.double)
    moment = torch.zeros(channels, taps + 1, 1, dtype=torch.double)
    for x, target in _in_chunks(maps, targets, taps + 1):
        x = run(cascade[:index], x)
        system = _tap_maps(conv, tail, x).double()
        rest = (target - run(tail, torch.zeros_like(x))).transpose(0, 1).reshape(channels, -1, 1)
        gram += system @ system.mT
        moment += system @ rest.double()
    start = torch.cat([conv.weight.view(channels, taps), conv.bias[:, None]], dim=1).double()
    found = least_squares_step(gram, moment, start[..., None], ridge)[..., 0]
    conv.weight.copy_(found[:, :-1].view_as(conv.weight))
    conv.bias.copy_(found[:, -1])


def _in_chunks(maps: Maps, targets: Maps, copies: int) -> Iterator[tuple]:
    """Parts of the batches, of which so many copies fit into a chunk."""
    for x, target in zip(maps, targets, strict=True):
        images = max(1, CHUNK // (copies * x[0].numel()))
        yield from zip(x.split(images), target.split(images), strict=True)


def _tap_maps(conv: nn.Conv2d, tail: Sequence[nn.Conv2d], x: torch.Tensor) -> torch.Tensor:
    """What each tap of a convolution, and its bias, adds to the answer for a weight of one.

    Returns:
        Tensor: ``(C, T + 1, N * H * W)``.
    """
    images, channels = x.shape[:2]
    shifted = unfold(x, conv.kernel_size, conv.dilation, conv.padding)
    shifted = shifted.view(images, channels, -1, *x.shape[2:])
    added = torch.cat([shifted, torch.ones_like(shifted[:, :, :1])], dim=2).transpose(1, 2)
    maps = added.flatten(0, 1)
    for later in tail:
        maps = conv2d(
            maps,
            later.weight,
            padding=later.padding,
            dilation=later.dilation,
            groups=channels,
        )
    return maps.view(added.shape).permute(2, 1, 0, 3, 4).flatten(2)


class PointwiseFit:
    """The least-squares problem of a 1x1 convolution.

    Args:
        conv (nn.Conv2d): The convolution with its present weights.
        maps (Sequence[Tensor]): What it takes, batches ``(N, C, H, W)``.
        targets (Sequence[Tensor]): What it is to answer.
    """

    @torch.no_grad()
    def __init__(self, conv: nn.Conv2d, maps: Maps, targets: Maps) -> None:
        self.conv = conv
        self.start = torch.cat([conv.weight[:, :, 0, 0], conv.bias[:, None]], dim=1).T.double()
        unknowns = len(self.start)
        self.gram = torch.zeros(unknowns, unknowns, dtype=torch.double)
        self.moment = torch.zeros_like(self.start)
        for x, target in zip(maps, targets, strict=True):
            system = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).transpose(0, 1).flatten(1)
            self.gram += (system @ system.T).double()
            self.moment += (system @ target.transpose(0, 1).flatten(1).T).double()

    @torch.no_grad()
    def solve(self, ridge: float) -> None:
        """Give the convolution the weights that fit best, held near the old ones by ``ridge``."""
        found = least_squares_step(self.gram, self.moment, self.start, ridge).T
        self.conv.weight.copy_(found[:, :-1, None, None])
        self.conv.bias.copy_(found[:, -1])
