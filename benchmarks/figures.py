"""Pictures of times: against the kernel size, and against the size of the map."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from .measure import OURS, REFERENCE, Result
from .settings import KINDS, Settings

# All legal, below and above the step of the dilation from 2 to 3.
KERNEL_SIZES = (7, 11, 23, 35, 41, 53, 65)
SIDES = (16, 32, 64, 128, 256)
COLOURS = dict(zip(KINDS, ('#1f6fb4', '#d95f02', '#2ca02c', '#7b4fa3'), strict=True))
MODE_COLOURS = {'forward': '#1f6fb4', 'train': '#d95f02'}
MODE_NAMES = {'forward': 'forward', 'train': 'forward + backward'}
SIDE_STYLES = {REFERENCE: ('--', 'o', 'white', 'official order'), OURS: ('-', 'o', None, 'ours')}


def kernel_sizes(settings: Settings) -> list[Settings]:
    """The four kinds of attention at all kernel sizes."""
    return [settings.but(attention=kind, kernel_size=k) for kind, k in product(KINDS, KERNEL_SIZES)]


def input_sizes(settings: Settings) -> list[Settings]:
    """One layer in both modes on square maps of growing size."""
    number, channels = settings.shape[:2]
    return [
        settings.but(mode=mode, shape=(number, channels, side, side))
        for mode, side in product(MODE_NAMES, SIDES)
    ]


def draw_kernel_sizes(path: str | Path, results: Sequence[Result]) -> None:
    """Draw time against kernel size, a colour for each kind of attention."""
    figure, axes = new_figure()
    for kind in KINDS:
        own = [result for result in results if result.settings.attention == kind]
        draw_pair(axes, own, lambda r: r.settings.kernel_size, COLOURS[kind], kind)
    sizes = sorted({result.settings.kernel_size for result in results})
    axes.set(xlabel='kernel size k (positions)', xticks=sizes, yscale='log')
    finish(figure, axes, path, results)


def draw_input_sizes(path: str | Path, results: Sequence[Result]) -> None:
    """Draw time against the side of the map, a colour for forward and for a training pass."""
    figure, axes = new_figure()
    for mode, name in MODE_NAMES.items():
        own = [result for result in results if result.settings.mode == mode]
        draw_pair(axes, own, lambda r: r.settings.shape[2], MODE_COLOURS[mode], name)
    sides = sorted({result.settings.shape[2] for result in results})
    axes.set(xlabel='side of the square map (positions)', xscale='log', yscale='log')
    axes.set_xticks(sides, sides)
    axes.minorticks_off()
    finish(figure, axes, path, results)


FIGURES: dict[str, tuple[Callable, Callable]] = {
    'kernel-size': (kernel_sizes, draw_kernel_sizes),
    'input-size': (input_sizes, draw_input_sizes),
}


def new_figure() -> tuple[Figure, object]:
    """An empty figure with one pair of axes."""
    figure = Figure(figsize=(9, 5), layout='constrained')
    return figure, figure.subplots()


def draw_pair(
    axes: object, results: Sequence[Result], x_of: Callable, colour: str, name: str
) -> None:
    """Draw the times of the reference and of ours, with a label for each line."""
    results = sorted(results, key=x_of)
    for variant, (line, marker, face, side) in SIDE_STYLES.items():
        axes.plot(
            [x_of(result) for result in results],
            [result.milliseconds(variant) for result in results],
            line,
            marker=marker,
            color=colour,
            markerfacecolor=face or colour,
            markersize=5,
            label=f'{name}, {side}',
        )


def finish(figure: Figure, axes: object, path: str | Path, results: Sequence[Result]) -> None:
    """Add the common labels and write the file."""
    one = results[0].settings
    clock = 'processor time' if results[0].clock == 'busy' and one.device == 'cpu' else 'time'
    axes.set_ylabel(f'{clock} of one run (ms)')
    axes.set_title(describe(results), fontsize=10)
    axes.yaxis.set_major_formatter('{x:g}')
    axes.grid(which='major', color='#dddddd', linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside right center', frameon=False, fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def describe(results: Sequence[Result]) -> str:
    """What all results have in common."""
    one = results[0].settings
    what = {'op': 'depth-wise cascade', 'layer': 'attention layer'}.get(one.case, one.case)
    parts = [what]
    if len({result.settings.attention for result in results}) == 1:
        parts.append(one.attention + ('' if one.kernel_size is None else f' k={one.kernel_size}'))
    if len({result.settings.shape for result in results}) == 1:
        parts.append('×'.join(map(str, one.shape)))
    else:
        parts.append(f'{one.shape[0]}×{one.shape[1]} maps')
    if len({result.settings.mode for result in results}) == 1:
        parts.append(MODE_NAMES[one.mode])
    layout = 'channels_last' if one.layout == 'channels_last' else 'contiguous'
    threads = f', {one.threads} thread{"s" * (one.threads > 1)}' if one.device == 'cpu' else ''
    return ', '.join([*parts, layout, one.dtype, one.device]) + threads
