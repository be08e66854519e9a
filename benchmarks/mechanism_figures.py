"""Pictures of what each attention layer does, every one computed by the layer itself.

They have no background, and colours between light and dark, so that they can be read on both.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import nn

from mmlska.layers import (
    ECA,
    LKA,
    LSKA,
    ContextAggregation,
    DFCAttention,
    IdentityStart,
    LKATrivial,
    LSKATrivial,
    MixedAffinity,
)

from .layer_figures import INK

UNSEEN, SEEN, TAP = f'{INK}33', '#4a8fd9', '#f08c2e'
CELLS = ListedColormap([UNSEEN, SEEN, TAP])
HEAT = 'viridis'
KERNEL_SIZE = 23
# Odd, so that there is a middle, and a little wider than the kernel.
SIDE = KERNEL_SIZE + 4
PANEL = 1.45  # inches


def draw_mechanisms(folder: str | Path) -> None:
    """Draw a picture for each mechanism, ``mechanism_NAME.png``, into a folder."""
    torch.manual_seed(0)
    for name, draw in MECHANISMS.items():
        figure = draw()
        path = Path(folder) / f'mechanism_{name}.png'
        figure.savefig(path, dpi=150, transparent=True, metadata=dict(Software=None))


def draw_cascades() -> Figure:
    """What one output position sees of the input, convolution by convolution."""
    rows = {
        layer: layer(1, kernel_size=KERNEL_SIZE) for layer in (LKATrivial, LSKATrivial, LKA, LSKA)
    }
    figure, axes = new_figure(len(rows), 4, side=1.3)
    for line, (kind, layer) in zip(axes, rows.items(), strict=True):
        convs = layer.depthwise_convs()
        line[0].set_ylabel(kind.__name__, color=INK, weight='bold')
        for i, axis in enumerate(line):
            if i < len(convs):
                show_cells(axis, footprint(convs[: i + 1]), taps(convs[i]))
                axis.set_title(describe(convs, i), color=INK, fontsize=8)
            else:
                axis.axis('off')
    return figure


def footprint(convs: Sequence[nn.Conv2d], side: int = SIDE) -> torch.Tensor:
    """The input positions that the middle output position sees through convolutions."""
    x = torch.zeros(1, convs[0].in_channels, side, side, requires_grad=True)
    y = x
    for conv in convs:
        # Only where the taps are matters: with weights of one, no two of them cancel.
        y = torch.conv2d(y, torch.ones_like(conv.weight), None, 1, *where(conv), conv.groups)
    y[0, 0, side // 2, side // 2].backward()
    return x.grad[0, 0] > 0


def where(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding and dilation of a convolution."""
    return conv.padding, conv.dilation


def taps(conv: nn.Conv2d) -> torch.Tensor:
    """The positions that a convolution takes in around the middle."""
    return footprint([conv])


def describe(convs: Sequence[nn.Conv2d], i: int) -> str:
    """Size of a kernel, and the weights of a channel so far."""
    conv = convs[i]
    size = '×'.join(map(str, conv.kernel_size))
    dilated = f', dilated {conv.dilation[0]}' if conv.dilation[0] > 1 else ''
    weights = sum(conv.weight[0].numel() for conv in convs[: i + 1])
    return f'{size}{dilated}\n{weights} weights a channel'


def draw_context() -> Figure:
    """ContextAggregation: where it looks, and where what it found arrives."""
    x = blobs()
    layer = ContextAggregation(3)
    with torch.no_grad():
        for conv, channel, gain, offset in ((layer.k, 0, 8.0, 0.0), (layer.a, 1, 9.0, -4.0)):
            conv.weight.zero_()[0, channel] = gain
            conv.bias.fill_(offset)
        for conv in (layer.v, layer.m):
            nn.init.dirac_(conv.weight)
        weights = layer.k(x).flatten().softmax(0).view(x.shape[2:])
        gate = layer.a(x).sigmoid()[0, 0]
        added = (layer(x) - x)[0].norm(dim=0)
    figure, (axes,) = new_figure(1, 4)
    show_colours(axes[0], x[0], 'x, three channels')
    show_heat(axes[1], weights, 'softmax of k(x):\nwhere it looks')
    show_heat(axes[2], gate, 'sigmoid of a(x):\nwho asks')
    show_heat(axes[3], added, 'what is added:\none vector, gated')
    return figure


def blobs(side: int = 32) -> torch.Tensor:
    """A map ``(1, 3, side, side)``: one soft spot in each of the first two channels."""
    rows, columns = torch.meshgrid(*[torch.linspace(0, 1, side)] * 2, indexing='ij')
    spots = [
        torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 0.02)
        for y, x in ((0.3, 0.3), (0.7, 0.65))
    ]
    return torch.stack([*spots, 0.3 * rows])[None]


def draw_eca() -> Figure:
    """ECA: the mean of each channel, and the gate that a few neighbours give."""
    channels, chosen = 16, 6
    layer = ECA(channels, kernel_size=5)
    layer.conv.weight.data.copy_(torch.tensor([-1.0, 0.5, 2.0, 0.5, -1.0])[None, None])
    x = torch.randn(channels)[None, :, None, None].expand(-1, -1, 4, 4)
    with torch.no_grad():
        gate = (layer(x) / x).mean((0, 2, 3))
    figure, (axes,) = new_figure(1, 2, width=3.2)
    near = [SEEN if abs(c - chosen) > 2 else TAP for c in range(channels)]
    one = [TAP if c == chosen else SEEN for c in range(channels)]
    show_bars(axes[0], x[0, :, 0, 0], near, f'mean of each channel;\nk = 5 around channel {chosen}')
    show_bars(axes[1], gate, one, 'gate: the sigmoid of\nthe convolution over channels')
    return figure


def draw_dfc() -> Figure:
    """DFC attention: what one output position sees, step by step."""
    side = 17
    gate = DFCAttention(1).short_conv
    row, column = (m for m in gate if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1))
    figure, (axes,) = new_figure(1, 4, side=1.3)
    middle = torch.zeros(side, side, dtype=torch.bool)
    middle[side // 2, side // 2] = True
    steps = {
        'one output position': [],
        'its cell of 2×2': [],
        'convolution 1×5\nover cells': [row],
        'convolution 5×1\nover cells': [row, column],
    }
    for i, (axis, (title, convs)) in enumerate(zip(axes, steps.items(), strict=True)):
        seen = cells_seen(convs, side) if i else middle
        show_cells(axis, seen, middle)
        axis.set_title(title, color=INK, fontsize=8)
    return figure


def cells_seen(convs: Sequence[nn.Conv2d], side: int) -> torch.Tensor:
    """What the middle of a map sees through cells of 2x2 positions and convolutions over them."""
    x = torch.zeros(1, 1, side, side, requires_grad=True)
    y = nn.functional.avg_pool2d(x, 2)
    for conv in convs:
        y = torch.conv2d(y, torch.ones_like(conv.weight), None, 1, *where(conv))
    nn.functional.interpolate(y, size=side)[0, 0, side // 2, side // 2].backward()
    return x.grad[0, 0] > 0


def draw_affinities() -> Figure:
    """Mixed affinity: the two matrices between positions, and a row of each as a map."""
    side = 8
    layer = MixedAffinity(16, num_heads=1)
    x = 3 * torch.randn(1, 16, side, side)
    with torch.no_grad():
        dynamic = layer.dynamic_affinity(x)[0, 0]
        static = layer.static_affinity(side, side)[0].abs()
        static = static / static.sum(1).mean()
    mixed = 0.5 * dynamic + 0.5 * static
    figure, axes = new_figure(2, 3)
    titles = (
        'dynamic: A(x), softmax\nof queries and keys',
        'static: A,\na convolution 5×5',
        'mixed, half of each',
    )
    position = side * side // 2 + side // 2
    for i, (matrix, title) in enumerate(zip((dynamic, static, mixed), titles, strict=True)):
        show_heat(axes[0][i], matrix.sqrt(), title)
        show_heat(axes[1][i], matrix[position].view(side, side).sqrt(), '')
    axes[0][0].set_ylabel('64 × 64 positions', color=INK, fontsize=8)
    axes[1][0].set_ylabel('one row, as a map', color=INK, fontsize=8)
    return figure


def draw_identity_start() -> Figure:
    """Identity start: the same layer at three values of its factor."""
    x = blobs()
    layer = IdentityStart(3, attention=dict(type='LSKA', kernel_size=11))
    for conv in layer.attention.depthwise_convs():
        nn.init.constant_(conv.weight, 1 / conv.weight[0].numel())
    nn.init.dirac_(layer.attention.conv1.weight)
    figure, (axes,) = new_figure(1, 3)
    titles = ('g = 0, the start: x itself', 'g = 1/2', 'g = 1: f(x), here LSKA')
    for axis, g, title in zip(axes, (0, 0.5, 1), titles, strict=True):
        with torch.no_grad():
            layer.g.fill_(g)
            show_heat(axis, layer(x)[0].norm(dim=0), title, top=x.max().item())
    return figure


MECHANISMS: dict[str, Callable[[], Figure]] = {
    'large_kernel': draw_cascades,
    'context_aggregation': draw_context,
    'eca': draw_eca,
    'dfc_attention': draw_dfc,
    'mixed_affinity': draw_affinities,
    'identity_start': draw_identity_start,
}


def new_figure(
    rows: int, columns: int, side: float = PANEL, width: float | None = None
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels, and its axes by row."""
    figure = Figure(
        figsize=(columns * (width or side) + 0.3, rows * (side + 0.45)), layout='constrained'
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def show_cells(axes: Axes, seen: torch.Tensor, marked: torch.Tensor) -> None:
    """Draw the positions that are seen, and marked ones among them."""
    cells = seen.int() + (seen & marked)
    axes.pcolormesh(cells.numpy(), cmap=CELLS, vmin=0, vmax=2, edgecolors='none')
    frame(axes)


def show_heat(axes: Axes, values: torch.Tensor, title: str, top: float | None = None) -> None:
    """Draw values as colours, up to ``top``, or on a scale of their own."""
    axes.imshow(values.numpy(), cmap=HEAT, interpolation='nearest', vmax=top)
    axes.set_title(title, color=INK, fontsize=8)
    frame(axes)


def show_colours(axes: Axes, x: torch.Tensor, title: str) -> None:
    """Draw three channels as red, green and blue."""
    axes.imshow(x.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation='nearest')
    axes.set_title(title, color=INK, fontsize=8)
    frame(axes)


def show_bars(axes: Axes, values: torch.Tensor, colours: Sequence[str], title: str) -> None:
    """Draw a bar for each channel."""
    axes.bar(range(len(values)), values.numpy(), color=colours)
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.set_title(title, color=INK, fontsize=8)
    axes.set_xlabel('channel', color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=7)
    axes.spines[:].set_visible(False)


def frame(axes: Axes) -> None:
    """A square without ticks, in the colour of the text."""
    axes.set(xticks=[], yticks=[], aspect='equal')
    axes.spines[:].set_color(INK)
    axes.spines[:].set_linewidth(0.5)
