"""Layers and backbones side by side: size, work, memory and time at equal input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.utils import track_iter_progress
from torch import nn

from mmlska.analysis import timing
from mmlska.analysis.complexity import count_macs, count_params
from mmlska.layers.build import build_layer
from mmlska.models import VAN, ContainerLight, ContextAggregation, GhostNetV2

from . import report
from .layer_figures import draw_data_flows, draw_receptive_fields
from .mechanism_figures import draw_mechanisms

# Layers by name, with the side of what one output position sees, in positions of the map.
LAYERS = {
    'LSKA, k=23': (dict(type='LSKA', kernel_size=23), '23 x 23'),
    'LSKA, k=35': (dict(type='LSKA', kernel_size=35), '35 x 35'),
    'LKA, k=23': (dict(type='LKA', kernel_size=23), '23 x 23'),
    'LSKATrivial, k=23': (dict(type='LSKATrivial', kernel_size=23), '23 x 23'),
    'LKATrivial, k=23': (dict(type='LKATrivial', kernel_size=23), '23 x 23'),
    'ContextAggregation': (dict(type='ContextAggregation'), 'all, by one vector'),
    'ECA': (dict(type='ECA'), 'all, by channel means'),
    'DFCAttention': (dict(type='DFCAttention'), '10 x 10'),
    'MixedAffinity': (dict(type='MixedAffinity'), 'all'),
}
BACKBONES = {
    'VAN-LSKA-tiny': lambda: VAN('tiny'),
    'VAN-LSKA-small': lambda: VAN('small'),
    'VAN-LSKA-base': lambda: VAN('base'),
    'VAN-B0 (LKA)': lambda: VAN('b0', dict(type='LKA')),
    'VAN-B1 (LKA)': lambda: VAN('b1', dict(type='LKA')),
    'VAN-B2 (LKA)': lambda: VAN('b2', dict(type='LKA')),
    'GhostNetV2 1.0x': lambda: GhostNetV2(1.0),
    'GhostNetV2 1.3x': lambda: GhostNetV2(1.3),
    'GhostNetV2 1.6x': lambda: GhostNetV2(1.6),
    'ContainerLight': lambda: ContainerLight(),
}
# Cells of a row by the titles of their columns.
LAYER_CELLS = {
    'parameters (K)': lambda row: f'{row.params / 1e3:.2f}',
    'multiply-adds (M)': lambda row: f'{row.macs / 1e6:.1f}',
    'kept for backward (MiB)': lambda row: f'{row.saved_bytes / 2**20:.1f}',
    'time': lambda row: f'{row.ratio:.2f}',
}
BACKBONE_CELLS = {
    'parameters (M)': lambda row: f'{row.params / 1e6:.2f}',
    'multiply-adds (G)': lambda row: f'{row.macs / 1e9:.2f}',
    'kept for backward (GiB)': lambda row: f'{row.saved_bytes / 2**30:.2f}',
    'time': lambda row: f'{row.ratio:.2f}',
}


@dataclass(frozen=True)
class Row:
    """What was counted and measured of one module.

    Attributes:
        name: Name of the module.
        params: Number of parameters.
        macs: Multiply-adds of one forward pass.
        saved_bytes: Activations that training keeps for the backward pass, in float32.
        ratio: Time of a forward pass, as a multiple of the reference's in the same run.
    """

    name: str
    params: int
    macs: int
    saved_bytes: int
    ratio: float


def layer_modules(in_channels: int) -> dict[str, nn.Module]:
    """The layers of the table, for maps of ``in_channels`` channels."""
    return {name: build_layer(cfg, in_channels) for name, (cfg, _) in LAYERS.items()}


def layer_table(
    in_channels: int, shape: tuple[int, int], memory_shape: tuple[int, int], rounds: int
) -> str:
    """Markdown table of the layers, see :func:`compare_modules`."""
    shapes = (1, in_channels, *shape), (1, in_channels, *memory_shape)
    rows = compare_modules(layer_modules(in_channels), *shapes, rounds)
    sees = {name: seen for name, (_, seen) in LAYERS.items()}
    return report.table(
        dict(layer='left', sees='left') | dict.fromkeys(LAYER_CELLS, 'right'),
        [
            [row.name, sees.get(row.name, ''), *(cell(row) for cell in LAYER_CELLS.values())]
            for row in rows
        ],
    )


def backbone_table(shape: tuple[int, int], memory_shape: tuple[int, int], rounds: int) -> str:
    """Markdown table of the backbones, see :func:`compare_modules`."""
    modules = {name: build() for name, build in BACKBONES.items()}
    rows = compare_modules(modules, (1, 3, *shape), (1, 3, *memory_shape), rounds)
    return report.table(
        dict(backbone='left') | dict.fromkeys(BACKBONE_CELLS, 'right'),
        [[row.name, *(cell(row) for cell in BACKBONE_CELLS.values())] for row in rows],
    )


def draw_figures(folder: str | Path, size: int = 71) -> None:
    """Draw data flows, mechanisms, and receptive fields on maps of ``size``, into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw_data_flows(folder / 'data_flow.png')
    draw_mechanisms(folder)
    torch.manual_seed(0)
    layers = layer_modules(16)
    for layer in layers.values():
        if isinstance(layer, ContextAggregation):
            # A new one is the identity; this is what it sees once it has learned something.
            torch.nn.init.normal_(layer.m.weight)
    draw_receptive_fields(folder / 'receptive_fields.png', layers, 16, size)


def compare_modules(
    modules: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    memory_shape: tuple[int, ...],
    rounds: int = 7,
) -> list[Row]:
    """Count and measure modules at equal input; the first one is the reference of the times.

    The last row is the reference measured once more: its distance from 1 is the noise.

    Args:
        modules: Modules by name.
        shape: Input for counting and timing, ``(N, C, H, W)``.
        memory_shape: Input whose saved activations are added up.
        rounds: How often each module is timed.
    """
    reference = next(iter(modules))
    modules = {**modules, f'{reference} once more': modules[reference]}
    x = torch.rand(shape)
    runs = {name: _forward(module, x) for name, module in modules.items()}
    ratios = timing.relative_times(runs, rounds, torch.device('cpu'))
    rows = []
    for name, module in track_iter_progress(list(modules.items())):
        macs, _ = count_macs(module.eval(), x)
        saved = saved_bytes(module.train(), torch.rand(memory_shape))
        rows.append(Row(name, count_params(module), macs, saved, ratios[name]))
    return rows


def _forward(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return module(x)

    module.eval()
    return run


def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and input left out.

    Each piece of memory counts once, however many operations need it.
    """
    known = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers(), x)}
    kept = {}

    def keep(tensor: torch.Tensor) -> None:
        if _storage(tensor) not in known:
            # Kept here, lest its memory be given to another one; not in the graph, which would
            # then hold itself and never be freed.
            kept[_storage(tensor)] = tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        module(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
