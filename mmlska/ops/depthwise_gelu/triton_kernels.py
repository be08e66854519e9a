"""Triton kernels of the 3x3 depth-wise convolution with GELU, forward and backward.

A program computes a tile of a few rows by some columns by some channels. It asks for everything it
needs of the map before it computes anything, so that many loads are under way at once; what
neighbouring tiles share comes from the cache. Sums are in float32, in float64 for float64 maps.

The shift, the bias of what made the map, is added to what is loaded. What a convolution sees beyond
the border stays zero: there the negative shift is loaded, of the dtype of the map, so that the sum
is zero exactly.
"""

import torch
import triton
import triton.language as tl

from ..call_context import layout_of

# Values of a tile: four for each thread, in float64 one.
ELEMENTS = 512
# Columns or channels of a tile, whichever are dense in memory.
MOST_DENSE = 64
# Rows of a tile; fewer where the gradients of the weights are summed, which takes registers.
ROWS = 4
GRADIENT_ROWS = 2
# A program adds up the gradients of the weights over at most so many tiles below each other,
# provided that there remain enough programs to fill a large GPU.
MOST_STACKED = 16
ENOUGH_PROGRAMS = 1024
OPTIONS = dict(num_warps=4, enable_fp_fusion=True)
# With so many registers for a thread a third program runs on a multiprocessor. In float32, and with
# Triton 3.3, the gradients do not fit into them.
IS_BOUNDED = tuple(map(int, triton.__version__.split('.')[:2])) >= (3, 9)
BOUNDED = dict(OPTIONS, maxnreg=168) if IS_BOUNDED else OPTIONS
OPTIONS_BACK = {
    torch.bfloat16: BOUNDED,
    torch.float16: BOUNDED,
    torch.float32: OPTIONS,
    torch.float64: OPTIONS,
}

# 1 minus the distribution function of the standard normal distribution, at z >= 0, is
# exp(-z**2 / 2) (t T1 + t**2 T2 + ... + t**6 T6) with t = 1 / (1 + REACH z), to 1.1e-8, and for z
# up to 6 to 9e-5 of itself. Fitted to scipy.special.erfcx by weighted least squares.
REACH = tl.constexpr(0.28)
T1, T2, T3 = map(tl.constexpr, (0.116449755, 0.0679449, 0.267786875))
T4, T5, T6 = map(tl.constexpr, (-0.235595048, 0.389009095, -0.105595579))


@triton.jit
def _place(height, width, num_channels, ROWS, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, first row, columns and channels of this program."""
    program = tl.program_id(0)
    # Programs of one place in the map run side by side: their channels are neighbours in memory.
    channel_tiles = tl.cdiv(num_channels, CHANNELS)
    channels = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    tile = program // channel_tiles
    column_tiles = tl.cdiv(width, COLUMNS)
    columns = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    tile = tile // column_tiles
    row_tiles = tl.cdiv(height, ROWS)
    return tile // row_tiles, tile % row_tiles * ROWS, columns, channels


@triton.jit
def _offsets(image, row, columns, channels, s_image, s_row, s_column, s_channel):
    """Where a row lies, in 64 bits: maps may have more than 2**31 elements."""
    start = image.to(tl.int64) * s_image + row.to(tl.int64) * s_row
    inner = (columns.to(tl.int64) * s_column)[:, None] + (channels.to(tl.int64) * s_channel)[None]
    return start + inner


@triton.jit
def _load_surroundings(
    x, shift, row, columns, present, height, width, s_row, s_column, ROWS: tl.constexpr
):
    """From one row above to one below, each shifted by -1, 0 and 1 columns: entry 3 i + j."""
    outside = 0.0
    if shift is not None:
        outside = (-shift).to(x.dtype.element_ty)
    tiles = ()
    for i in tl.static_range(ROWS + 2):
        y = row + (i - 1)
        # A row outside the map has no columns.
        end = tl.where((y >= 0) & (y < height), width, 0)
        for j in tl.static_range(3):
            at = columns + (j - 1)
            inside = ((at >= 0) & (at < end))[:, None] & present
            place = tl.cast(i - 1, tl.int64) * s_row + tl.cast(j - 1, tl.int64) * s_column
            tiles = tiles + (tl.load(x + place, mask=inside, other=outside),)
    return tiles


@triton.jit
def _shifted(tile, shift, DTYPE: tl.constexpr):
    """What the convolution sees of what was loaded."""
    value = tile.to(DTYPE)
    if shift is not None:
        value += shift
    return value


@triton.jit
def _load_taps(taps, channels, num_channels):
    loaded = ()
    for t in tl.static_range(9):
        tap = tl.load(taps + t * num_channels + channels, mask=channels < num_channels, other=0.0)
        loaded = loaded + (tap[None, :],)
    return loaded


@triton.jit
def _convolve_row(tiles, shift, taps, start, ROW: tl.constexpr):
    total = start
    for t in tl.static_range(9):
        total += taps[t] * _shifted(tiles[3 * ROW + t], shift, start.dtype)
    return total


@triton.jit
def _sum_row_of_taps(taps, columns, width, ROW: tl.constexpr):
    """For each column the sum of those taps of a row of the kernel that meet the map."""
    left = tl.where((columns > 0)[:, None], taps[3 * ROW], 0.0)
    right = tl.where((columns + 1 < width)[:, None], taps[3 * ROW + 2], 0.0)
    return left + taps[3 * ROW + 1] + right


@triton.jit
def _load_shift(shift, x, channels, num_channels, DTYPE: tl.constexpr):
    """The shift ``(1, C)``, values that a map can hold."""
    value = tl.load(shift + channels, mask=channels < num_channels, other=0.0)
    return value.to(x.dtype.element_ty).to(DTYPE)[None, :]


@triton.jit
def _load_bias(bias, like, channels, num_channels, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    start = tl.zeros((COLUMNS, CHANNELS), like.dtype.element_ty)
    if bias is not None:
        value = tl.load(bias + channels, mask=channels < num_channels, other=0.0)
        start += value.to(start.dtype)[None, :]
    return start


@triton.jit
def _normal(x):
    """Distribution function and density of the standard normal distribution."""
    if x.dtype == tl.float64:
        return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476), tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        z = tl.abs(x)
        bell = tl.exp2(z * z * -0.7213475204444817)
        far = 1.0 + REACH * z
        # One instruction; a quotient takes eight.
        t = tl.rsqrt(far * far)
        tail = (((((T6 * t + T5) * t + T4) * t + T3) * t + T2) * t + T1) * t * bell
        return tl.where(x < 0.0, tail, 1.0 - tail), bell * 0.3989422804014327


@triton.jit
def _gelu(x):
    chance, _ = _normal(x)
    return x * chance


@triton.jit
def _gelu_slope(x):
    chance, density = _normal(x)
    return chance + x * density


@triton.jit(do_not_specialize=['height', 'width'])
def _convolve_kernel(
    x,
    taps,
    bias,
    shift,
    out,
    height,
    width,
    num_channels,
    s_image,
    s_row,
    s_column,
    s_channel,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GELU: tl.constexpr,
):
    image, row, columns, channels = _place(height, width, num_channels, ROWS, COLUMNS, CHANNELS)
    at = _offsets(image, row, columns, channels, s_image, s_row, s_column, s_channel)
    present = (channels < num_channels)[None, :]
    moved = shift
    if shift is not None:
        moved = _load_shift(shift, x, channels, num_channels, taps.dtype.element_ty)
    tiles = _load_surroundings(
        x + at, moved, row, columns, present, height, width, s_row, s_column, ROWS
    )
    weights = _load_taps(taps, channels, num_channels)
    start = _load_bias(bias, taps, channels, num_channels, COLUMNS, CHANNELS)
    for r in tl.static_range(ROWS):
        result = _convolve_row(tiles, moved, weights, start, r)
        if GELU:
            result = _gelu(result)
        own = (columns < tl.where(row + r < height, width, 0))[:, None] & present
        place = out + at + tl.cast(r, tl.int64) * s_row
        tl.store(place, result.to(out.dtype.element_ty), mask=own)


@triton.jit(do_not_specialize=['height', 'width', 'stacked'])
def _differentiate_kernel(
    grad,
    x,
    taps,
    bias,
    shift,
    for_inner,
    partial,
    height,
    width,
    num_channels,
    s_image,
    s_row,
    s_column,
    s_channel,
    stacked,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image, first, columns, channels = _place(
        height, width, num_channels, ROWS * stacked, COLUMNS, CHANNELS
    )
    present = (channels < num_channels)[None, :]
    weights = _load_taps(taps, channels, num_channels)
    start = _load_bias(bias, taps, channels, num_channels, COLUMNS, CHANNELS)
    zero = tl.zeros((COLUMNS, CHANNELS), taps.dtype.element_ty)
    moved = shift
    if shift is not None:
        moved = _load_shift(shift, x, channels, num_channels, taps.dtype.element_ty)
    for_bias = zero
    # The same in the first and in the last row of the map alone.
    in_first = zero
    in_last = zero
    for_taps = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for tile in range(stacked):
        row = first + tile * ROWS
        at = _offsets(image, row, columns, channels, s_image, s_row, s_column, s_channel)
        tiles = _load_surroundings(
            x + at, moved, row, columns, present, height, width, s_row, s_column, ROWS
        )
        grads, own = (), ()
        for r in tl.static_range(ROWS):
            inside = (columns < tl.where(row + r < height, width, 0))[:, None] & present
            place = grad + at + tl.cast(r, tl.int64) * s_row
            grads = grads + (tl.load(place, mask=inside, other=0.0),)
            own = own + (inside,)
        for r in tl.static_range(ROWS):
            slope = _gelu_slope(_convolve_row(tiles, moved, weights, start, r))
            inner = grads[r].to(start.dtype) * slope
            for_bias += inner
            added = ()
            for t in tl.static_range(9):
                seen = _shifted(tiles[3 * r + t], moved, start.dtype)
                added = added + (for_taps[t] + inner * seen,)
            for_taps = added
            if shift is not None:
                in_first += tl.where(row + r == 0, inner, 0.0)
                in_last += tl.where(row + r == height - 1, inner, 0.0)
            place = for_inner + at + tl.cast(r, tl.int64) * s_row
            tl.store(place, inner.to(for_inner.dtype.element_ty), mask=own[r])
    tile = tl.program_id(0) // tl.cdiv(num_channels, CHANNELS)
    sums = for_taps + (for_bias,)
    if shift is not None:
        # Each tap passes the shift on wherever it meets the map.
        above = _sum_row_of_taps(weights, columns, width, 0)
        beside = _sum_row_of_taps(weights, columns, width, 1)
        below = _sum_row_of_taps(weights, columns, width, 2)
        for_shift = above * (for_bias - in_first) + beside * for_bias + below * (for_bias - in_last)
        sums = sums + (for_shift,)
    place = partial + tile.to(tl.int64) * len(sums) * num_channels + channels
    for t in tl.static_range(len(sums)):
        tl.store(place + t * num_channels, tl.sum(sums[t], 0), mask=channels < num_channels)


def convolve(
    x: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    shift: torch.Tensor | None,
    gelu: bool,
) -> torch.Tensor:
    """The convolution of a dense map ``(N, C, H, W)`` with ``taps (9, C)``, then maybe GELU.

    ``bias`` and ``shift`` are contiguous.
    """
    out = torch.empty_like(x, memory_format=layout_of(x))
    if x.numel():
        columns, channels = tile_of(x)
        programs = _count_tiles(x, ROWS, columns) * triton.cdiv(x.shape[1], channels)
        sizes = (*_geometry(x), ROWS, columns, channels)
        with torch.cuda.device_of(x):
            _convolve_kernel[(programs,)](x, taps, bias, shift, out, *sizes, gelu, **OPTIONS)
    return out


def differentiate(
    grad: torch.Tensor,
    x: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    shift: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of what GELU sees, and of taps, bias and, if there is one, shift, ``(11, C)``.

    ``grad`` lies in memory as ``x`` does.
    """
    for_inner = torch.empty_like(x, memory_format=layout_of(x))
    columns, channels = tile_of(x)
    channel_tiles = triton.cdiv(x.shape[1], channels)
    programs = _count_tiles(x, GRADIENT_ROWS, columns) * channel_tiles
    stacked = max(1, min(MOST_STACKED, programs // ENOUGH_PROGRAMS))
    tiles = _count_tiles(x, GRADIENT_ROWS * stacked, columns)
    rows = 10 if shift is None else 11
    partial = torch.empty((tiles, rows, x.shape[1]), dtype=taps.dtype, device=x.device)
    if x.numel():
        sizes = (*_geometry(x), stacked, GRADIENT_ROWS, columns, channels)
        with torch.cuda.device_of(x):
            _differentiate_kernel[(tiles * channel_tiles,)](
                grad, x, taps, bias, shift, for_inner, partial, *sizes, **OPTIONS_BACK[x.dtype]
            )
    return for_inner, partial.sum(0)


def taps_of(weight: torch.Tensor) -> torch.Tensor:
    """Weights ``(C, 1, 3, 3)`` as ``(9, C)`` in the dtype of the sums, channels side by side."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    taps = torch.empty((9, len(weight)), dtype=dtype, device=weight.device)
    return taps.copy_(weight.reshape(-1, 9).t())


def tile_of(x: torch.Tensor) -> tuple[int, int]:
    """Columns and channels of a tile."""
    elements = ELEMENTS // 4 if x.dtype == torch.float64 else ELEMENTS
    columns, channels = map(triton.next_power_of_2, (x.shape[3], x.shape[1]))
    if x.stride(1) == 1:
        channels = min(channels, MOST_DENSE)
        return min(columns, elements // channels), channels
    columns = min(columns, MOST_DENSE)
    return columns, min(channels, elements // columns)


def _count_tiles(x: torch.Tensor, rows: int, columns: int) -> int:
    """Tiles of so many rows and columns in all images of a map ``(N, C, H, W)``."""
    return x.shape[0] * triton.cdiv(x.shape[2], rows) * triton.cdiv(x.shape[3], columns)


def _geometry(x: torch.Tensor) -> tuple[int, ...]:
    """Height, width and channels of a map ``(N, C, H, W)``, and its four strides."""
    n, c, h, w = x.stride()
    return x.shape[2], x.shape[3], x.shape[1], n, h, w, c
