"""Triton kernels of one or two 1-D depth-wise convolutions along one axis, and their gradients.

A program marches along some lines of the map, rows or columns, for some channels, and keeps what
the kernels see in registers: every value is loaded once, the map between two convolutions is never
in memory, and there is no halo but at the ends of a segment, where lines are cut to fill the GPU.
The backward pass computes the map in between again, and the gradients of input, weights and biases
in one march. Sums are in float32, in float64 for float64 maps. Weights are summed in a fixed order.

Maps have dense channels (channels_last); the other strides may be any.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .schedule import March, StepBack, plan_back, plan_of_shapes

# None of these is tuned on a GPU: warps of a program; positions that are loaded ahead while as many
# are computed, forward and backward; programs that run at once on a multiprocessor.
NUM_WARPS = 4
AHEAD, AHEAD_BACK = 8, 4
PROGRAMS, PROGRAMS_BACK = 4, 3
# Values that are kept for each position of a tile up to which a thread takes two positions, and up
# to which maps of half precision then leave it enough of so few registers that as many programs run
# backward. In float32 they do not with every Triton.
MOST_FOR_TWO = 64
MOST_BOUNDED, MOST_REGISTERS_BACK = 60, 168
OPTIONS = dict(num_warps=NUM_WARPS, enable_fp_fusion=True)
SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _place(num_lines, length, channels, segment, LINES: tl.constexpr, CHANNELS: tl.constexpr):
    """Lines, first position and channels of this program."""
    program = tl.program_id(0)
    # Channels vary first: programs of one place run side by side, as they lie in memory.
    channel_tiles = tl.cdiv(channels, CHANNELS)
    channel = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    program = program // channel_tiles
    segments = tl.cdiv(length, segment)
    line = program // segments * LINES + tl.arange(0, LINES)
    return line, program % segments * segment, channel, program


@triton.jit
def _offsets(line, channel, lines, s_image, s_line):
    """Where the lines begin, in 64 bits: maps may have more than 2**31 elements."""
    image = (line // lines).to(tl.int64)
    start = image * s_image + (line % lines).to(tl.int64) * s_line
    return start[:, None] + channel[None, :]


@triton.jit
def _taps(weight, channel, channels, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    taps = ()
    for t in tl.static_range(SIZE):
        tap = tl.load(weight + channel * SIZE + t, mask=channel < channels, other=0.0)
        taps = taps + (tap.to(DTYPE)[None, :],)
    return taps


@triton.jit
def _bias(bias, channel, channels, DTYPE: tl.constexpr):
    # What follows a return is compiled too: only the else hides it.
    if bias is None:
        return tl.zeros((1, channel.shape[0]), DTYPE)
    else:
        return tl.load(bias + channel, mask=channel < channels, other=0.0).to(DTYPE)[None, :]


@triton.jit
def _sees(line, lines, tap, SIZE: tl.constexpr, DILATION: tl.constexpr):
    """Whether a tap of the convolution along the other axis meets the map."""
    seen = line % lines + (tap - SIZE // 2) * DILATION
    return ((seen >= 0) & (seen < lines))[:, None]


@triton.jit
def _middle_bias(
    bias, across, across_bias, line, channel, lines, channels,
    ACROSS: tl.constexpr, DILATION: tl.constexpr, DTYPE: tl.constexpr, start,
):  # fmt: skip
    """What is added behind the first convolution."""
    added = start + _bias(bias, channel, channels, DTYPE)
    if across_bias is not None:
        spread = _bias(across_bias, channel, channels, DTYPE)
        taps = _taps(across, channel, channels, ACROSS, DTYPE)
        for t in tl.static_range(ACROSS):
            added += tl.where(_sees(line, lines, t, ACROSS, DILATION), spread * taps[t], 0.0)
    return added


@triton.jit
def _zeros(start, COUNT: tl.constexpr):
    window = ()
    for _ in tl.static_range(COUNT):
        window = window + (start,)
    return window


@triton.jit
def _within(position, begin, end):
    """Whether ``begin <= position < end``, in one comparison."""
    return tl.cast(position - begin, tl.uint32) < tl.cast(end - begin, tl.uint32)


@triton.jit
def _load_ahead(pointer, position, length, stride, present, COUNT: tl.constexpr):
    """The values at a position and at those behind it, zero outside the map."""
    place = pointer + tl.cast(position, tl.int64) * stride
    values = ()
    for u in tl.static_range(COUNT):
        inside = tl.where(_within(position + u, 0, length), present, False)
        distance = tl.cast(stride, tl.int64) * u
        values = values + (tl.load(place + distance, mask=inside, other=0.0),)
    return values


@triton.jit
def _correlate(total, taps, window, SIZE: tl.constexpr, DILATION: tl.constexpr):
    for t in tl.static_range(SIZE):
        total += taps[t] * window[t * DILATION]
    return total


@triton.jit
def _convolve(total, taps, window, SIZE: tl.constexpr, DILATION: tl.constexpr):
    """The same with the kernel reversed, as gradients pass it."""
    for t in tl.static_range(SIZE):
        total += taps[t] * window[(SIZE - 1 - t) * DILATION]
    return total


@triton.jit(do_not_specialize=['num_lines', 'lines', 'length', 'segment'])
def _march_kernel(
    x, y, w1, b1, w2, b2, wa, ba,
    num_lines, lines, length, channels, segment,
    s_image, s_line, s_position, t_image, t_line, t_position,
    K1: tl.constexpr, D1: tl.constexpr, K2: tl.constexpr, D2: tl.constexpr,
    KA: tl.constexpr, DA: tl.constexpr,
    LINES: tl.constexpr, CHANNELS: tl.constexpr, AHEAD: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    R1: tl.constexpr = K1 // 2 * D1
    R2: tl.constexpr = K2 // 2 * D2
    line, begin, channel, _ = _place(num_lines, length, channels, segment, LINES, CHANNELS)
    present = (line < num_lines)[:, None] & (channel < channels)[None, :]
    source = x + _offsets(line, channel, lines, s_image, s_line)
    target = y + _offsets(line, channel, lines, t_image, t_line)
    start = tl.zeros((LINES, CHANNELS), DTYPE)
    taps1 = _taps(w1, channel, channels, K1, DTYPE)
    bias1 = _middle_bias(b1, wa, ba, line, channel, lines, channels, KA, DA, DTYPE, start)
    xs = _zeros(start, (K1 - 1) * D1 + 1)
    if K2 > 0:
        taps2 = _taps(w2, channel, channels, K2, DTYPE)
        bias2 = start + _bias(b2, channel, channels, DTYPE)
        mids = _zeros(start, (K2 - 1) * D2 + 1)
    end = tl.minimum(begin + segment, length)
    # What lies before the map is zero, as the windows are.
    first = tl.maximum(begin - R1 - R2, 0)
    ahead = _load_ahead(source, first, length, s_position, present, AHEAD)
    for position in range(first, end + R1 + R2, AHEAD):
        values = ahead
        ahead = _load_ahead(source, position + AHEAD, length, s_position, present, AHEAD)
        place = target + tl.cast(position - R1 - R2, tl.int64) * t_position
        for u in tl.static_range(AHEAD):
            xs = xs[1:] + (values[u].to(DTYPE),)
            total = _correlate(bias1, taps1, xs, K1, D1)
            at = position + (u - R1)
            if K2 > 0:
                mids = mids[1:] + (tl.where(_within(at, 0, length), total, 0.0),)
                total = _correlate(bias2, taps2, mids, K2, D2)
            own = tl.where(_within(at - R2, begin, end), present, False)
            there = place + tl.cast(t_position, tl.int64) * u
            tl.store(there, total.to(y.dtype.element_ty), mask=own)


@triton.jit
def _write_sums(partial, values, channel, channels, COUNT: tl.constexpr):
    """Sums over the lines of this program, ``(C, COUNT)``; returns where the next ones stand."""
    for t in tl.static_range(COUNT):
        place = partial + channel * COUNT + t
        tl.store(place, tl.sum(values[t], axis=0), mask=channel < channels)
    return partial + channels * COUNT


@triton.jit
def _write_zeros(partial, channel, channels, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """As many zeros; returns where the next sums stand."""
    for t in tl.static_range(COUNT):
        zeros = tl.zeros((channel.shape[0],), DTYPE)
        tl.store(partial + channel * COUNT + t, zeros, mask=channel < channels)
    return partial + channels * COUNT


@triton.jit(do_not_specialize=['row', 'num_lines', 'lines', 'length', 'segment'])
def _march_back_kernel(
    g, x, gx, partial, row, w1, b1, w2, wa, ba, wa_again, ba_again,
    num_lines, lines, length, channels, segment,
    g_image, g_line, g_position, s_image, s_line, s_position, t_image, t_line, t_position,
    K1: tl.constexpr, D1: tl.constexpr, K2: tl.constexpr, D2: tl.constexpr,
    KA: tl.constexpr, DA: tl.constexpr, B2: tl.constexpr, FOR_INPUT: tl.constexpr,
    FOR_WEIGHTS: tl.constexpr, BEFORE: tl.constexpr, COLUMNS: tl.constexpr, AFTER: tl.constexpr,
    LINES: tl.constexpr, CHANNELS: tl.constexpr, AHEAD: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    R1: tl.constexpr = K1 // 2 * D1
    R2: tl.constexpr = K2 // 2 * D2
    line, begin, channel, program = _place(num_lines, length, channels, segment, LINES, CHANNELS)
    present = (line < num_lines)[:, None] & (channel < channels)[None, :]
    g_source = g + _offsets(line, channel, lines, g_image, g_line)
    start = tl.zeros((LINES, CHANNELS), DTYPE)
    end = tl.minimum(begin + segment, length)
    first = tl.maximum(begin - R1 - R2, 0)
    taps1 = _taps(w1, channel, channels, K1, DTYPE)
    if K2 > 0:
        taps2 = _taps(w2, channel, channels, K2, DTYPE)
        gs = _zeros(start, (K2 - 1) * D2 + 1)
    if FOR_INPUT:
        target = gx + _offsets(line, channel, lines, t_image, t_line)
        inner = _zeros(start, (K1 - 1) * D1 + 1)
    if FOR_WEIGHTS:
        source = x + _offsets(line, channel, lines, s_image, s_line)
        bias1 = _middle_bias(b1, wa, ba, line, channel, lines, channels, KA, DA, DTYPE, start)
        xs = _zeros(start, (K1 - 1) * D1 + 1)
        for_w1 = _zeros(start, K1)
        for_w2 = _zeros(start, K2)
        for_b1 = start
        for_b2 = start
        # The window of the input is to be full where the first gradient is.
        first = tl.minimum(first, tl.maximum(begin - R1, 0) - R1 + R2)
        x_ahead = _load_ahead(source, first - R2 + R1, length, s_position, present, AHEAD)
    g_ahead = _load_ahead(g_source, first, length, g_position, present, AHEAD)
    for position in range(first, end + R1 + R2, AHEAD):
        g_values = g_ahead
        g_ahead = _load_ahead(g_source, position + AHEAD, length, g_position, present, AHEAD)
        if FOR_WEIGHTS:
            x_values = x_ahead
            x_ahead = _load_ahead(
                source, position + (AHEAD - R2 + R1), length, s_position, present, AHEAD
            )
        if FOR_INPUT:
            place = target + tl.cast(position - R1 - R2, tl.int64) * t_position
        for u in tl.static_range(AHEAD):
            # The position between the convolutions.
            at = position + (u - R2)
            grad = g_values[u].to(DTYPE)
            if K2 > 0:
                gs = gs[1:] + (grad,)
                grad = _convolve(start, taps2, gs, K2, D2)
                grad = tl.where(_within(at, 0, length), grad, 0.0)
            if FOR_WEIGHTS:
                own = _within(at, begin, end)
                xs = xs[1:] + (x_values[u].to(DTYPE),)
                own_grad = tl.where(own, grad, 0.0)
                added = ()
                for t in tl.static_range(K1):
                    added = added + (for_w1[t] + own_grad * xs[t * D1],)
                for_w1 = added
                for_b1 += own_grad
                if K2 > 0:
                    mid = tl.where(own, _correlate(bias1, taps1, xs, K1, D1), 0.0)
                    added = ()
                    for t in tl.static_range(K2):
                        added = added + (for_w2[t] + mid * gs[(K2 - 1 - t) * D2],)
                    for_w2 = added
                    for_b2 += tl.where(own, gs[R2], 0.0)
            if FOR_INPUT:
                inner = inner[1:] + (grad,)
                total = _convolve(start, taps1, inner, K1, D1)
                kept = tl.where(_within(at - R1, begin, end), present, False)
                there = place + tl.cast(t_position, tl.int64) * u
                tl.store(there, total.to(gx.dtype.element_ty), mask=kept)
    if FOR_WEIGHTS:
        width = (BEFORE + COLUMNS + AFTER) * channels
        place = partial + (row + program).to(tl.int64) * width
        place = _write_zeros(place, channel, channels, BEFORE, DTYPE)
        for_wa = place
        place = _write_sums(place + KA * channels, for_w1, channel, channels, K1)
        place = _write_sums(place, (for_b1,), channel, channels, 1)
        place = _write_sums(place, for_w2, channel, channels, K2)
        if B2:
            place = _write_sums(place, (for_b2,), channel, channels, 1)
        if KA > 0:
            # Each tap of the convolution that was moved sees the bias wherever it meets the map.
            # Last, in a loop and through pointers of its own: otherwise registers that the
            # march needs would hold addresses for it.
            known = channel < channels
            spread = tl.load(ba_again + channel, mask=known, other=0.0).to(DTYPE)
            for_ba = tl.zeros((CHANNELS,), DTYPE)
            for t in range(KA):
                seen = tl.sum(tl.where(_sees(line, lines, t, KA, DA), for_b1, 0.0), axis=0)
                tl.store(for_wa + channel * KA + t, spread * seen, mask=known)
                tap = tl.load(wa_again + channel * KA + t, mask=known, other=0.0)
                for_ba += tap.to(DTYPE) * seen
            tl.store(place + channel, for_ba, mask=known)
            place += channels
        _write_zeros(place, channel, channels, AFTER, DTYPE)


def apply_march(
    x: torch.Tensor,
    march: March,
    tiles: '_Tiles',
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Apply the one or two convolutions of a march.

    The device of the map is the current one.

    Args:
        x (Tensor): Map ``(N, C, H, W)`` with dense channels.
        march (March): Which of the convolutions.
        tiles (_Tiles): How it is divided among programs.
        weights (Sequence[Tensor]): Kernels of the cascade, contiguous.
        biases (Sequence[Tensor | None]): Its biases, contiguous.

    Returns:
        Tensor: Map ``(N, C, H, W)`` in channels_last.
    """
    y = torch.empty_like(x, memory_format=torch.channels_last)
    across, across_bias, across_sizes = _across(march, weights, biases)
    if tiles.number:
        _march_kernel[(tiles.number,)](
            x,
            y,
            *_parameters(march, weights, biases),
            across,
            across_bias,
            *tiles.geometry,
            *_strides(x, march),
            *_strides(y, march),
            *tiles.sizes,
            *across_sizes,
            *tiles.shape,
            **OPTIONS,
        )
    return y


def apply(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: tuple[int, ...],
) -> list[torch.Tensor]:
    """Apply a cascade.

    Args:
        x (Tensor): Map ``(N, C, H, W)`` with dense channels.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)``, contiguous.
        biases (Sequence[Tensor | None]): Biases ``(C,)``, contiguous.
        dilations (tuple[int, ...]): Dilation of each.

    Returns:
        list[Tensor]: The map, and what each march makes of the one before, in channels_last.
    """
    shapes = tuple([weight.shape for weight in weights])
    maps = [x]
    with torch.cuda.device_of(x):
        for march, tiles in _plan_forward(shapes, dilations, x.shape, x.dtype, x.device):
            maps.append(apply_march(maps[-1], march, tiles, weights, biases))
    return maps


def differentiate(
    grad: torch.Tensor,
    maps: Sequence[torch.Tensor | None],
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: tuple[int, ...],
    needed: tuple[bool, ...],
) -> list[torch.Tensor | None]:
    """Gradients of a cascade.

    Args:
        grad (Tensor): Gradient of the result, with dense channels.
        maps (Sequence[Tensor | None]): What the marches read, with dense channels; None for a
            second one where there is one march.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)``, contiguous.
        biases (Sequence[Tensor | None]): Biases ``(C,)``, contiguous.
        dilations (tuple[int, ...]): Dilation of each.
        needed (tuple[bool, ...]): Which gradients: of the map, of all weights, of all biases.

    Returns:
        list[Tensor | None]: These gradients, that of the map in channels_last, those of parameters
            in the dtype of sums and in memory that they share; None where none is needed.
    """
    x = maps[0]
    shapes = tuple([weight.shape for weight in weights])
    biased = tuple([bias is not None for bias in biases])
    plan = _plan_backward(shapes, dilations, biased, needed, x.shape, x.dtype, x.device)
    partial = None
    if plan.views:
        partial = torch.empty(plan.size, dtype=_sum_dtype(x.dtype), device=x.device)
    found: list[torch.Tensor | None] = [None] * len(needed)
    with torch.cuda.device_of(x):
        for step, tiles, row in plan.launches:
            call = grad, maps[step.map], step, tiles, weights, biases, partial, row
            for_input = differentiate_march(*call)
            grad = for_input if step.for_input else grad
    if needed[0]:
        found[0] = grad
    if partial is not None:
        sums = partial.sum(0)
        for place, view in plan.views:
            found[place] = sums.as_strided(*view)
    return found


def differentiate_march(
    grad: torch.Tensor,
    x: torch.Tensor,
    step: StepBack,
    tiles: '_Tiles',
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    partial: torch.Tensor | None,
    row: int,
) -> torch.Tensor | None:
    """Gradient of the input of a march, and sums for those of its parameters.

    Args:
        grad (Tensor): Gradient of its output, with dense channels.
        x (Tensor): Its input, with dense channels.
        step (StepBack): What is computed.
        tiles (_Tiles): How it is divided among programs.
        weights (Sequence[Tensor]): Kernels of the cascade, contiguous.
        biases (Sequence[Tensor | None]): Its biases, contiguous.
        partial (Tensor | None): Where the sums of each program are written,
            ``(rows, width C)``.
        row (int): The row of the first program.

    Returns:
        Tensor | None: Gradient of the input in channels_last, None if none is wanted.
    """
    march = step.march
    gx = torch.empty_like(x, memory_format=torch.channels_last) if step.for_input else None
    if tiles.number:
        first, first_bias, second, _ = _parameters(march, weights, biases)
        across, across_bias, across_sizes = _across(march, weights, biases)
        _march_back_kernel[(tiles.number,)](
            grad,
            x,
            gx,
            partial,
            row,
            first,
            first_bias,
            second,
            across,
            across_bias,
            across,
            across_bias,
            *tiles.geometry,
            *_strides(grad, march),
            *_strides(x, march),
            *_strides(grad if gx is None else gx, march),
            *tiles.sizes,
            *across_sizes,
            *step.constants,
            *tiles.shape,
            **options_back(step.kept, x.dtype),
        )
    return gx


class _Tiles:
    """How a march over a map is divided among programs.

    Attributes:
        number: Programs.
        along_channels: How many of them stand side by side, at different channels.
        rows: How many stand at different places; those side by side share a row of sums.
        sizes: Length and dilation of the first and of the second convolution.
        geometry: Lines in all and in an image, positions of a line, channels, positions of a
            segment.
        shape: Lines and channels of a tile, positions loaded ahead, dtype of sums.
    """

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        march: March,
        kept: int,
        ahead: int,
        at_once: int,
    ) -> None:
        images, channels, *sides = shape
        length, lines = sides[march.axis - 2], sides[3 - march.axis]
        tile_lines, tile_channels = tile_shape(channels, kept, dtype, device.type)
        self.along_channels = _divide_up(channels, tile_channels)
        along_lines = _divide_up(images * lines, tile_lines)
        whole = self.along_channels * along_lines
        slots = at_once * processors(device)
        segments = number_of_segments(length, march.reach, whole, slots)
        segment = _divide_up(length, segments) if length else 1
        self.rows = along_lines * _divide_up(length, segment)
        self.number = self.along_channels * self.rows
        self.sizes = _sizes(march)
        self.geometry = (images * lines, lines, length, channels, segment)
        self.shape = (tile_lines, tile_channels, ahead, SUMS[_sum_dtype(dtype)])


# On small maps working out what follows takes longer than the kernels.
@functools.lru_cache(maxsize=4096)
def _plan_forward(
    shapes: Sequence[Sequence[int]],
    dilations: Sequence[int],
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[tuple[March, _Tiles], ...]:
    """The marches of kernels ``(C, 1, kh, kw)``, and how they are divided on a map."""
    call = shape, dtype, device
    return tuple(
        (march, _Tiles(*call, march, march.kept_forward(), AHEAD, PROGRAMS))
        for march in plan_of_shapes(shapes, dilations)
    )


class _Backward(NamedTuple):
    """How gradients are computed.

    Attributes:
        launches: What is computed one after the other, how it is divided, and its first row of
            sums.
        size: Rows and columns of sums.
        views: Place, behind the map, of each parameter whose gradient is needed; shape, strides and
            offset of it in the sums of all columns.
    """

    launches: tuple[tuple[StepBack, _Tiles, int], ...]
    size: tuple[int, int]
    views: tuple[tuple[int, tuple[Sequence[int], Sequence[int], int]], ...]


@functools.lru_cache(maxsize=4096)
def _plan_backward(
    shapes: Sequence[Sequence[int]],
    dilations: Sequence[int],
    biased: Sequence[bool],
    needed: Sequence[bool],
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> _Backward:
    """The same for the gradients that are needed, see :func:`differentiate`."""
    back = plan_back(plan_of_shapes(shapes, dilations), biased, needed)
    launches, row, offset, views = [], 0, 0, []
    for step in back.steps:
        tiles = _Tiles(shape, dtype, device, step.march, step.kept, AHEAD_BACK, PROGRAMS_BACK)
        launches.append((step, tiles, row))
        row += tiles.rows if step.for_weights else 0
    for place, count in back.columns.items():
        if needed[place]:
            # A kernel (C, 1, kh, kw) or a bias (C,).
            sides = shapes[place - 1] if place <= len(shapes) else shape[1:2]
            strides = (count, count, sides[-1], 1)[-len(sides) :]
            views.append((place, (sides, strides, offset)))
        offset += count * shape[1]
    return _Backward(tuple(launches), (row, offset), tuple(views))


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def tile_shape(channels: int, kept: int, dtype: torch.dtype, device_type: str) -> tuple[int, int]:
    """Lines and channels of a tile: what a warp loads at once is one piece of memory."""
    values = 2 if kept <= MOST_FOR_TWO and dtype != torch.float64 else 1
    # What is interpreted takes its time for each operation, not for each element.
    widest = 32 * values * (1 if device_type == 'cuda' else 16)
    width = min(1 << (channels - 1).bit_length(), widest)
    if width == widest and _divide_up(channels, width // 2) % 2:
        # Half as wide a tile leaves fewer lanes idle.
        width //= 2
    return NUM_WARPS * widest // width, width


def options_back(kept: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """How the kernel of the gradients is compiled."""
    if kept > MOST_BOUNDED or dtype not in (torch.bfloat16, torch.float16):
        return OPTIONS
    return {**OPTIONS, 'maxnreg': MOST_REGISTERS_BACK}


@functools.lru_cache(maxsize=4096)
def number_of_segments(length: int, reach: int, tiles: int, slots: int) -> int:
    """Into how many segments lines are cut: with so many the last program ends first.

    Programs run in waves, as many at once as there are slots, and each takes as long as its segment
    and what it computes anew because others compute it too. That is never more than the segment.

    Args:
        length (int): Positions of a line.
        reach (int): Positions that an output sees on either side of its own.
        tiles (int): Programs if no line is cut.
        slots (int): Programs that run at once on the GPU.
    """
    most = max(1, length // (2 * reach + 1))

    def duration(segments: int) -> int:
        segment = _divide_up(length, segments)
        waves = _divide_up(tiles * _divide_up(length, max(1, segment)), slots)
        return waves * (segment + 2 * reach)

    return min(range(1, most + 1), key=duration)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    if device.type != 'cuda':
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what a map is summed up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _strides(x: torch.Tensor, march: March) -> tuple[int, int, int]:
    """Distances of images, lines and positions of a map ``(N, C, H, W)`` in memory."""
    strides = x.stride()
    return strides[0], strides[5 - march.axis], strides[march.axis]


def _sizes(march: March) -> tuple[int, int, int, int]:
    """Length and dilation of the first and of the second convolution, 0 and 1 for none."""
    second = (march.second.size, march.second.dilation) if march.second else (0, 1)
    return march.first.size, march.first.dilation, *second


def _parameters(
    march: March, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Kernel ``(C, 1, kh, kw)`` and bias ``(C,)`` of the first convolution and of the second."""
    found = []
    for conv in (march.first, march.second):
        found.append(weights[conv.index] if conv else None)
        found.append(biases[conv.bias] if conv and conv.bias is not None else None)
    return found


def _across(
    march: March, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor | None, torch.Tensor | None, tuple[int, int]]:
    """Kernel ``(C, 1, kh, kw)``, bias ``(C,)``, length and dilation of the one that was moved."""
    conv = march.across
    if conv is None or biases[conv.bias] is None:
        return None, None, (0, 1)
    return weights[conv.index], biases[conv.bias], (conv.size, conv.dilation)
