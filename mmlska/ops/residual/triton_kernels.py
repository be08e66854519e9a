"""Triton kernels of the residual sum, and of its gradients.

Maps are dense: a program computes a tile of some positions of an image by some channels. Sums are
in float32, in float64 for float64 maps, and in a fixed order.
"""

import torch
import triton
import triton.language as tl

from ..call_context import layout_of

# None of these is tuned on a GPU: values of a tile, eight for each thread; positions or channels of
# it, whichever are dense in memory; tiles of which a program adds up the gradients of the scale,
# provided that there remain enough programs to fill a large GPU.
ELEMENTS = 1024
MOST_CHANNELS = 64
MOST_STACKED = 16
ENOUGH_PROGRAMS = 1024
OPTIONS = dict(num_warps=4, enable_fp_fusion=True)
SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _place(num_positions, num_channels, POSITIONS, CHANNELS: tl.constexpr):
    """Image, first position and channels of this program."""
    program = tl.program_id(0)
    channel_tiles = tl.cdiv(num_channels, CHANNELS)
    channels = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    tile = program // channel_tiles
    position_tiles = tl.cdiv(num_positions, POSITIONS)
    return tile // position_tiles, tile % position_tiles * POSITIONS, channels


@triton.jit
def _offsets(image, positions, channels, s_image, s_position, s_channel):
    """Where a tile lies, in 64 bits: maps may have more than 2**31 elements."""
    inner = (positions.to(tl.int64) * s_position)[:, None]
    return image.to(tl.int64) * s_image + inner + (channels.to(tl.int64) * s_channel)[None]


@triton.jit
def _load_mask(mask, image, DTYPE: tl.constexpr):
    # What follows a return is compiled too: only the else hides it.
    if mask is None:
        return tl.full((), 1.0, DTYPE)
    else:
        return tl.load(mask + image).to(DTYPE)


@triton.jit
def _load_scale(scale, channels, num_channels, DTYPE: tl.constexpr):
    return tl.load(scale + channels, mask=channels < num_channels, other=0.0).to(DTYPE)


@triton.jit(do_not_specialize=['num_positions'])
def _add_kernel(
    x, branch, scale, mask, out,
    num_positions, num_channels, s_image, s_position, s_channel,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    image, first, channels = _place(num_positions, num_channels, POSITIONS, CHANNELS)
    positions = first + tl.arange(0, POSITIONS)
    at = _offsets(image, positions, channels, s_image, s_position, s_channel)
    own = (positions < num_positions)[:, None] & (channels < num_channels)[None, :]
    start = tl.load(x + at, mask=own, other=0.0).to(DTYPE)
    value = tl.load(branch + at, mask=own, other=0.0).to(DTYPE)
    factor = _load_scale(scale, channels, num_channels, DTYPE) * _load_mask(mask, image, DTYPE)
    tl.store(out + at, (start + value * factor[None, :]).to(out.dtype.element_ty), mask=own)


@triton.jit(do_not_specialize=['num_positions', 'stacked'])
def _differentiate_kernel(
    grad, branch, scale, mask, for_branch, partial,
    num_positions, num_channels, s_image, s_position, s_channel, stacked,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    image, first, channels = _place(num_positions, num_channels, POSITIONS * stacked, CHANNELS)
    kept = _load_mask(mask, image, DTYPE)
    factor = (_load_scale(scale, channels, num_channels, DTYPE) * kept)[None, :]
    total = tl.zeros((POSITIONS, CHANNELS), DTYPE)
    for tile in range(stacked):
        positions = first + tile * POSITIONS + tl.arange(0, POSITIONS)
        at = _offsets(image, positions, channels, s_image, s_position, s_channel)
        own = (positions < num_positions)[:, None] & (channels < num_channels)[None, :]
        value = tl.load(grad + at, mask=own, other=0.0).to(DTYPE)
        if partial is not None:
            total += value * tl.load(branch + at, mask=own, other=0.0).to(DTYPE)
        if for_branch is not None:
            tl.store(for_branch + at, (value * factor).to(for_branch.dtype.element_ty), mask=own)
    if partial is not None:
        tile = tl.program_id(0) // tl.cdiv(num_channels, CHANNELS)
        place = partial + tile.to(tl.int64) * num_channels + channels
        tl.store(place, tl.sum(total, 0) * kept, mask=channels < num_channels)


def add(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The sum of dense maps ``(N, C, H, W)`` of one layout.

    ``scale`` and ``mask`` are contiguous.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, branch.dtype), scale.dtype)
    out = torch.empty_like(x, dtype=dtype, memory_format=layout_of(x))
    if x.numel():
        positions, channels = tile_of(x)
        programs = _count_tiles(x, positions) * triton.cdiv(x.shape[1], channels)
        with torch.cuda.device_of(x):
            _add_kernel[(programs,)](
                x, branch, scale, mask, out, *_geometry(x),
                positions, channels, SUMS[_sum_dtype(dtype)], **OPTIONS,
            )  # fmt: skip
    return out


def differentiate(
    grad: torch.Tensor,
    branch: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
    for_branch: bool,
    for_scale: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of branch and scale, each None where it is not wanted.

    ``grad`` lies in memory as ``branch`` does.
    """
    gradient = torch.empty_like(branch, memory_format=layout_of(branch)) if for_branch else None
    positions, channels = tile_of(branch)
    channel_tiles = triton.cdiv(branch.shape[1], channels)
    programs = _count_tiles(branch, positions) * channel_tiles
    stacked = max(1, min(MOST_STACKED, programs // ENOUGH_PROGRAMS))
    tiles = _count_tiles(branch, positions * stacked)
    dtype = _sum_dtype(grad.dtype)
    partial = None
    if for_scale:
        partial = torch.empty((tiles, branch.shape[1]), dtype=dtype, device=branch.device)
    if branch.numel():
        with torch.cuda.device_of(branch):
            _differentiate_kernel[(tiles * channel_tiles,)](
                grad, branch, scale, mask, gradient, partial, *_geometry(branch), stacked,
                positions, channels, SUMS[dtype], **OPTIONS,
            )  # fmt: skip
    return gradient, None if partial is None else partial.sum(0).to(scale.dtype)


def tile_of(x: torch.Tensor) -> tuple[int, int]:
    """Positions and channels of a tile of a map ``(N, C, H, W)``."""
    positions, channels = map(triton.next_power_of_2, (x.shape[2] * x.shape[3], x.shape[1]))
    if layout_of(x) == torch.channels_last:
        channels = min(channels, MOST_CHANNELS)
        return min(positions, ELEMENTS // channels), channels
    positions = min(positions, ELEMENTS)
    return positions, min(channels, ELEMENTS // positions)


def _count_tiles(x: torch.Tensor, positions: int) -> int:
    """Tiles of so many positions in all images of a map ``(N, C, H, W)``."""
    return x.shape[0] * triton.cdiv(x.shape[2] * x.shape[3], positions)


def _geometry(x: torch.Tensor) -> tuple[int, int, int, int, int]:
    """Positions and channels of a dense map ``(N, C, H, W)``; strides of image, position, channel.

    Those that the map tells are anything along an axis of size 1.
    """
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    inner = (channels, 1) if layout_of(x) == torch.channels_last else (1, positions)
    return positions, channels, channels * positions, *inner


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what maps of a dtype are summed up."""
    return torch.float64 if dtype == torch.float64 else torch.float32
