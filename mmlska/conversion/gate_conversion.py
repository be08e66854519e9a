"""Turning the depth-wise convolutions of one LKA or LSKA into those of another."""

from collections.abc import Mapping

import torch

from mmlska.checkpoint.reading import CheckpointError

from .kernel_algebra import compose, energy_kept, outer, resize, scale_to, separate, split

# The depth-wise convolutions of each kind, local part before dilated part; two are row and column.
PARTS = {
    'LKA': (('conv0',), ('conv_spatial',)),
    'LSKA': (('conv0h', 'conv0v'), ('conv_spatial_h', 'conv_spatial_v')),
}

Conv = tuple[torch.Tensor, torch.Tensor]
Part = list[Conv]


def convert_gate(
    gate: Mapping[str, torch.Tensor], source: Mapping, target: Mapping
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Turn the depth-wise convolutions of an attention into those of another one.

    At the same dilation each kernel is extended by zeros, which changes nothing, or cropped; LSKA
    takes the nearest product of a row and a column, LKA the product itself. Biases stay; that of a
    row goes into the one of the merged kernel, which is exact but for the borders. At another
    dilation the composed kernel is cropped or extended, separated for LSKA, and split again; the
    last bias keeps the answer to an empty map, away from the borders.

    Args:
        gate (Mapping[str, Tensor]): Weights and biases by name, such as ``conv0.weight``.
        source (Mapping): ``type``, ``kernel_size`` and ``dilation`` of the attention in ``gate``.
        target (Mapping): The same of the new attention, legal by
            :func:`mmlska.models.decompose_kernel`.

    Returns:
        tuple[dict[str, Tensor], dict[str, float]]: The new weights and biases in the data type of
        the old ones; and the share of the squared norm that is kept, of the 'local' and the
        'dilated' kernel where the dilation stays, else of the two 'composed'.

    Raises:
        CheckpointError: If a weight is missing, misshaped or not finite.
    """
    dtype = next(iter(gate.values())).dtype
    parts = _read_parts(gate, source)
    if source['dilation'] == target['dilation']:
        new_parts, energies = _keep_dilation(parts, target)
    else:
        new_parts, energies = _change_dilation(parts, source, target)
    names = [name for sizes in layout(target) for name in sizes]
    convs = [conv for part in new_parts for conv in part]
    converted = {
        f'{name}.{what}': tensor.to(dtype).contiguous()
        for name, conv in zip(names, convs, strict=True)
        for what, tensor in zip(('weight', 'bias'), conv, strict=True)
    }
    return converted, energies


def layout(attention: Mapping) -> list[dict[str, tuple[int, int]]]:
    """Names and kernel sizes of the convolutions of the local and of the dilated part."""
    dilation = attention['dilation']
    sides = 2 * dilation - 1, (attention['kernel_size'] + 1) // dilation - 1
    return [
        dict(zip(names, [(side, side)] if len(names) == 1 else [(1, side), (side, 1)], strict=True))
        for names, side in zip(PARTS[attention['type']], sides, strict=True)
    ]


def _read_parts(gate: Mapping[str, torch.Tensor], attention: Mapping) -> list[Part]:
    """Local and dilated part in double precision."""
    channels = len(gate[next(iter(gate))])
    return [
        [
            (
                _read(gate, f'{name}.weight', (channels, 1, *size)),
                _read(gate, f'{name}.bias', (channels,)),
            )
            for name, size in sizes.items()
        ]
        for sizes in layout(attention)
    ]


def _read(gate: Mapping[str, torch.Tensor], key: str, shape: tuple[int, ...]) -> torch.Tensor:
    if key not in gate:
        raise CheckpointError(f'{key} is missing')
    found = gate[key]
    if tuple(found.shape) != shape:
        raise CheckpointError(f'{key} has the shape {tuple(found.shape)} instead of {shape}')
    if not found.isfinite().all():
        raise CheckpointError(f'{key} holds values that are not finite')
    return found.double()


def _keep_dilation(parts: list[Part], target: Mapping) -> tuple[list[Part], dict[str, float]]:
    new_parts = [
        _convert_part(part, list(sizes.values()))
        for part, sizes in zip(parts, layout(target), strict=True)
    ]
    energies = [
        energy_kept(_merge(old)[0], _merge(new)[0])
        for old, new in zip(parts, new_parts, strict=True)
    ]
    return new_parts, dict(zip(('local', 'dilated'), energies, strict=True))


def _convert_part(part: Part, sizes: list[tuple[int, int]]) -> Part:
    if len(part) == len(sizes):
        return [
            (resize(weight, size), bias) for (weight, bias), size in zip(part, sizes, strict=True)
        ]
    weight, bias = _merge(part)
    if len(sizes) == 1:
        return [(resize(weight, sizes[0]), bias)]
    row, column = separate(resize(weight, (sizes[1][0], sizes[0][1])))
    return [(row, torch.zeros_like(bias)), (column, bias)]


def _change_dilation(
    parts: list[Part], source: Mapping, target: Mapping
) -> tuple[list[Part], dict[str, float]]:
    (local, local_bias), (dilated, bias) = map(_merge, parts)
    kernel = compose(local, dilated, source['dilation'])
    offset = bias + local_bias * dilated.sum((1, 2, 3))
    wanted = resize(kernel, (target['kernel_size'],) * 2)
    split_kernel = _split_separable if target['type'] == 'LSKA' else _split_whole
    pairs = split_kernel(wanted, target['dilation'])
    none = torch.zeros_like(bias)
    new_parts = [[(weight, none) for weight in weights] for weights in pairs]
    new_parts[1][-1] = (new_parts[1][-1][0], offset)
    composed = compose(*(_merge(part)[0] for part in new_parts), target['dilation'])
    return new_parts, {'composed': energy_kept(kernel, composed)}


def _split_whole(kernel: torch.Tensor, dilation: int) -> list[list[torch.Tensor]]:
    return [[factor] for factor in split(kernel, dilation)]


def _split_separable(kernel: torch.Tensor, dilation: int) -> list[list[torch.Tensor]]:
    row, column = separate(kernel)
    rows, columns = split(row, dilation), split(column, dilation)
    # The two splits are the best for the row and the column, their product need not be for both.
    scale = scale_to(outer(compose(*rows, dilation), compose(*columns, dilation)), kernel)
    return [[rows[0], columns[0]], [rows[1], columns[1] * scale]]


def _merge(part: Part) -> Conv:
    """The one convolution that acts as a part does; away from the borders if a row has a bias."""
    if len(part) == 1:
        return part[0]
    (row, row_bias), (column, bias) = part
    return outer(row, column), bias + row_bias * column.sum((1, 2, 3))
