"""Pictures of the attention layers: what feeds what, and what sees what."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

# Between light and dark, so that it can be read on both where a picture has no background.
INK = '#7f858c'
# Of a step in a data flow: inches, and points.
BOX_WIDTH = 1.1
STEP_FONT_SIZE = 9

# Steps from the input to the last operation, which joins the branch with the input itself.
DATA_FLOWS = {
    'LSKA': (
        'dw\n1×(2d−1)',
        'dw\n(2d−1)×1',
        'dw, dilated d\n1×n',
        'dw, dilated d\nn×1',
        '1×1',
        '· x',
    ),
    'LKA': ('dw\n(2d−1)×(2d−1)', 'dw, dilated d\nn×n', '1×1', '· x'),
    'LSKATrivial': ('dw\n1×k', 'dw\nk×1', '1×1', '· x'),
    'LKATrivial': ('dw\nk×k', '1×1', '· x'),
    'ContextAggregation': (
        'weighted mean,\nby softmax(k(x))',
        'v: 1×1',
        'm: 1×1',
        '· sigmoid\nof a(x)',
        '+ x',
    ),
    'ECA': ('mean of\neach channel', 'conv over k\nchannels', 'sigmoid', '· x'),
    'DFCAttention': (
        'mean of\n2×2 cells',
        '1×1, norm',
        'dw 1×5,\nnorm',
        'dw 5×1,\nnorm',
        'sigmoid,\nenlarge',
        '· x',
    ),
    'MixedAffinity': (
        '1×1 to\nq, k, v',
        'α softmax(qk)v\n+ β dw5×5(v)',
        '1×1',
        '+ x',
    ),
}


def draw_data_flows(path: str | Path, flows: Mapping[str, tuple[str, ...]] = DATA_FLOWS) -> None:
    """Draw a row of boxes for each layer, with the input's way around them."""
    figure = Figure(figsize=(9.3, 1.35 * len(flows)))
    axes = figure.add_axes((0, 0, 1, 1))
    for row, (name, steps) in enumerate(flows.items()):
        _draw_flow(axes, -1.35 * row, name, steps)
    axes.set(xlim=(0, 9.3), ylim=(1 - 1.35 * len(flows), 1))
    axes.axis('off')
    figure.savefig(path, dpi=130, transparent=True, metadata=dict(Software=None))


def _draw_flow(axes: Axes, y: float, name: str, steps: tuple[str, ...]) -> None:
    axes.text(0.1, y + 0.62, name, va='center', weight='bold', fontsize=11, color=INK)
    axes.text(0.3, y, 'x', va='center', ha='center', fontsize=13, style='italic', color=INK)
    end = 0.3
    arrow = dict(arrowstyle='->', color=INK)
    for i, step in enumerate(steps):
        left = 0.75 + 1.4 * i
        joins = i == len(steps) - 1
        axes.annotate('', (left, y), (end + 0.1, y), arrowprops=arrow)
        box = FancyBboxPatch(
            (left, y - 0.24),
            BOX_WIDTH,
            0.48,
            boxstyle='round,pad=0.02',
            facecolor='#ffe0b2' if joins else '#dbe9f6',
            edgecolor=INK,
        )
        axes.add_patch(box)
        middle = left + BOX_WIDTH / 2
        axes.text(middle, y, step, va='center', ha='center', fontsize=STEP_FONT_SIZE)
        end = left + BOX_WIDTH
    corners = [(0.3, y + 0.14), (0.3, y + 0.38), (middle, y + 0.38), (middle, y + 0.26)]
    for first, second in pairwise(corners):
        style = '->' if second is corners[-1] else '-'
        way = dict(arrowstyle=style, color=INK, shrinkA=0, shrinkB=0)
        axes.annotate('', second, first, arrowprops=way)
    axes.annotate('', (end + 0.45, y), (end + 0.05, y), arrowprops=arrow)


def gradient_footprint(
    layer: nn.Module, in_channels: int, size: int, samples: int = 8
) -> torch.Tensor:
    """How much each input position moves the central output position.

    Args:
        layer: Maps ``(N, C, H, W)`` to the same shape.
        in_channels: Channels ``C``.
        size: Odd side of the map, in positions.
        samples: Random inputs to average over.

    Returns:
        Tensor: ``(size, size)``, mean absolute gradient, as a share of the largest.
    """
    x = torch.randn(samples, in_channels, size, size, requires_grad=True)
    layer.eval()(x)[:, :, size // 2, size // 2].sum().backward()
    footprint = x.grad.abs().mean((0, 1))
    return footprint / footprint.max()


def draw_receptive_fields(
    path: str | Path, layers: Mapping[str, nn.Module], in_channels: int, size: int = 71
) -> None:
    """Draw the footprints of layers side by side, in powers of ten."""
    columns = (len(layers) + 1) // 2
    figure = Figure(figsize=(2.6 * columns, 5.6), layout='constrained')
    for axes, (name, layer) in zip(
        figure.subplots(2, columns, squeeze=False).flat, layers.items(), strict=False
    ):
        footprint = gradient_footprint(layer, in_channels, size)
        image = axes.imshow(footprint.clamp_min(1e-12).log10(), vmin=-8, vmax=0, cmap='viridis')
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, color=INK)
    for axes in figure.axes[len(layers) :]:
        axes.axis('off')
    bar = figure.colorbar(image, ax=figure.axes)
    bar.set_label('log10 of the gradient, share of the largest', color=INK)
    bar.ax.tick_params(colors=INK)
    figure.savefig(path, dpi=90, transparent=True, metadata=dict(Software=None))
