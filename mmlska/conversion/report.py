"""Warm start of a checkpoint, with a report of what it keeps."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.utils import track_iter_progress

from mmlska.checkpoint.recognition import name_attention
from mmlska.models import VAN

from .calibration import block_errors, calibrate, hold_out, output_error
from .checkpoint_files import build_van
from .images import random_images, read_images
from .warm_start import NOTE, check_source, convert_van, resolve_attention

LAST_MAP = 'last map'
LEGEND = [
    "energy: share of the squared norm of the block's depth-wise kernels that is kept",
    "error: how far the block's output is from that of the old one for the input of the old one,",
    '       relative to that output',
    '       (a block hands most of its input through, so that even a small figure can be a lot)',
    'last map: the same for the whole backbone, where the errors of all blocks come together',
]

NOISE_IMAGES = 8

Maps = Sequence[torch.Tensor]
# Columns of values by row.
Table = dict[str, dict[str, float]]


class WarmStartOptions(NamedTuple):
    """What to turn the weights of a VAN into, and on what to measure and refine the result.

    Args:
        attention (str, optional): 'lska' or 'lka'. Defaults to None: that of the weights.
        kernel_size (int, optional): Receptive field. Defaults to None: that of the weights.
        dilation (int, optional): Dilation. Defaults to None: that of the weights where they keep
            their kernel size, else the paper's.
        calibrate (str | PathLike, optional): Folder of images to refine the result on.
        images (Sequence[str | PathLike]): Folders of images to measure it on. Defaults to none:
            those to refine it on, or else noise.
        image_size (int): Side of the images. Defaults to 224.
        max_images (int): Most images to take. Defaults to 64.
        seed (int): Seed of the noise. Defaults to 0.
    """

    attention: str | None = None
    kernel_size: int | None = None
    dilation: int | None = None
    calibrate: str | os.PathLike | None = None
    images: Sequence[str | os.PathLike] = ()
    image_size: int = 224
    max_images: int = 64
    seed: int = 0


def warm_start(
    weights: Mapping[str, torch.Tensor], options: WarmStartOptions
) -> tuple[dict[str, torch.Tensor], str]:
    """Turn the attention of a VAN into another one, and report what is kept.

    Args:
        weights (Mapping): Weights of a VAN under our names.
        options (WarmStartOptions): The new attention, and the images.

    Returns:
        tuple[dict, str]: The new weights, and a report for the user: for each block the energy that
        its kernels keep and the error of its output.

    Raises:
        CheckpointError: If the weights are of no VAN with LKA or LSKA, or not complete.
        ValueError: If the new attention is not possible, or a folder holds no image.
        NotADirectoryError: If a folder does not exist.
    """
    attention = new_attention(weights, options)
    source = build_van(weights).eval()
    to_fit = _read([options.calibrate], options) if options.calibrate else []
    to_measure = _read(options.images, options) if options.images else []
    if not to_fit and not to_measure:
        to_measure = random_images(options.image_size, NOISE_IMAGES, options.seed)
    converted, energies = convert_van(weights, attention, lambda x: _track('converting', x, len(x)))
    target = build_van(converted).eval()
    table = {**_energy_columns(energies), **_compare(source, target, to_fit, to_measure)}
    fitted = target.state_dict()
    new_weights = {key: fitted[key].to(value.dtype) for key, value in converted.items()}
    lines = [
        f'turned into: {name_attention(attention)}. {NOTE}',
        '',
        *format_table(table),
        '',
        *LEGEND,
        *_name_images(options, to_fit, to_measure),
    ]
    return new_weights, '\n'.join(lines)


def new_attention(weights: Mapping, options: WarmStartOptions) -> dict:
    """The attention that the options ask for; what they leave open stays as in the weights.

    Raises:
        CheckpointError: If the weights are of an attention that cannot be turned into another.
        ValueError: If there is no such attention. The message names the nearest legal sizes.
    """
    attention = check_source(weights)
    if options.attention is not None:
        attention['type'] = options.attention
    if options.kernel_size is not None:
        attention |= dict(kernel_size=options.kernel_size, dilation=None)
    if options.dilation is not None:
        attention['dilation'] = options.dilation
    return resolve_attention(attention)


def format_table(table: Table) -> list[str]:
    """Lines of a table in percent: a row for each block, their mean, and the last map."""
    blocks = [row for row in next(iter(table.values())) if row != LAST_MAP]
    columns = {'block': [*blocks, 'mean', LAST_MAP]}
    for name, values in table.items():
        mean = sum(values[block] for block in blocks) / len(blocks)
        numbers = [*(values[block] for block in blocks), mean, values.get(LAST_MAP)]
        columns[name] = ['' if x is None else f'{100 * x:.3g}%' for x in numbers]
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    return [
        '  '.join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def _compare(source: VAN, target: VAN, to_fit: Maps, to_measure: Maps) -> Table:
    """Errors of the target, which is refined if there are images to fit it to."""
    if not to_fit:
        return {'error': _measure(source, target, to_measure)}
    before = _measure(source, target, to_measure) if to_measure else {}
    table = _refine(source, target, to_fit)
    if to_measure:
        table |= {'other before': before, 'other after': _measure(source, target, to_measure)}
    return table


def _measure(source: VAN, target: VAN, images: Maps) -> dict[str, float]:
    return {
        **block_errors(source, target, images),
        LAST_MAP: output_error(source, target, images),
    }


def _refine(source: VAN, target: VAN, images: Maps) -> Table:
    parts = images, hold_out(images)[1] or images
    before = [output_error(source, target, part) for part in parts]
    rows = list(_track('refining', calibrate(source, target, images), sum(source.depths)))
    after = [output_error(source, target, part) for part in parts]
    return {
        'before': {**{row.block: row.before for row in rows}, LAST_MAP: before[0]},
        'after': {**{row.block: row.after for row in rows}, LAST_MAP: after[0]},
        'held out before': {
            **{row.block: row.held_out_before for row in rows},
            LAST_MAP: before[1],
        },
        'held out after': {**{row.block: row.held_out_after for row in rows}, LAST_MAP: after[1]},
    }


def _energy_columns(energies: Mapping[str, Mapping[str, float]]) -> Table:
    names = next(iter(energies.values()))
    return {
        f'energy {name}': {block: row[name] for block, row in energies.items()} for name in names
    }


def _read(folders: Sequence[str | os.PathLike], options: WarmStartOptions) -> Maps:
    return read_images(folders, options.image_size, options.max_images)


def _name_images(options: WarmStartOptions, to_fit: Maps, to_measure: Maps) -> list[str]:
    """What the errors are measured on."""
    measured = f'{_count(to_measure)} images of {", ".join(map(str, options.images))}'
    if not to_fit and not options.images:
        return [f'error: on {_count(to_measure)} images of noise; see --images']
    if not to_fit:
        return [f'error: on {measured}']
    held_out = _count(hold_out(to_fit)[1])
    return [
        f'before, after: on {_count(to_fit)} images of {options.calibrate}',
        f'held out: on {held_out} of them that the blocks are not fitted to',
        *([f'other: on {measured}'] if to_measure else []),
    ]


def _count(images: Maps) -> int:
    return sum(map(len, images))


def _track(what: str, items: Iterable, number: int) -> Iterable:
    """Show on the terminal how far the work is."""
    sys.stderr.write(f'{what}, {number} blocks\n')
    return track_iter_progress((items, number), file=sys.stderr)
