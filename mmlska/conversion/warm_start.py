"""Warm start: weights of one large-kernel attention as a start for another.

The exact part comes first: where the dilation stays, a larger kernel is the smaller one with zeros
around it and computes the same, and a smaller one is cropped out of the larger. What has to be
fitted, a product of a row and a column or another dilation, stands apart in
:mod:`mmlska.conversion.gate_conversion`.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.model.weight_init import update_init_info
from mmengine.runner import CheckpointLoader

from mmlska.checkpoint import CheckpointError, WholeLoading, unwrap
from mmlska.checkpoint.recognition import (
    GATE,
    describe_attention,
    is_convertible,
    name_attention,
    recognise_van,
)
from mmlska.ops.kernel_decomposition import decompose_kernel
from mmlska.registry import WEIGHT_INITIALIZERS

from .gate_conversion import PARTS, convert_gate
from .stem import STEM_KEY, check_stem_option, convert_stem

CONV_NAMES = '|'.join(name for parts in PARTS.values() for part in parts for name in part)
GATE_KEY = re.compile(rf'(blocks\d+\.\d+)\.{re.escape(GATE)}((?:{CONV_NAMES})\.\w+)')
NOTE = 'It is a start for fine-tuning, not the published model of that kernel.'
# What `convert` may state of the model's attention, and how to make a stem.
ATTENTION_OPTIONS = {'attention': 'type', 'kernel_size': 'kernel_size', 'dilation': 'dilation'}
STEM_OPTION = 'in_channels'


@WEIGHT_INITIALIZERS.register_module()
class WarmStart(PretrainedInit):
    """Start a VAN from weights of another kernel, or for images of other channels.

    A VAN makes it of an ``init_cfg`` of type 'Pretrained' with the entry ``convert``.
    ``convert=dict()`` turns the weights of any LKA or LSKA into those of the model's own attention,
    ``convert=dict(attention='LSKA', kernel_size=35)`` also states what that is, and
    ``convert=dict(in_channels='mean')`` makes a stem, see :func:`.stem.convert_stem`. Only the
    initialisation converts; ``load_from``, ``resume`` and ``load_state_dict`` do not.

    Args:
        checkpoint (str): As in mmengine's 'Pretrained'.
        convert (Mapping): What to convert.
        prefix (str, optional): As in mmengine's 'Pretrained'. Defaults to None.
        map_location (str): As in mmengine's 'Pretrained'. Defaults to 'cpu'.
    """

    def __init__(
        self,
        checkpoint: str,
        convert: Mapping,
        prefix: str | None = None,
        map_location: str = 'cpu',
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)
        self.convert = convert

    def __call__(self, module: WholeLoading) -> None:
        """Read, convert and load.

        Raises:
            ValueError: If ``convert`` has an unknown entry, or states another attention than the
                model's.
            CheckpointError: If the weights cannot be converted, or do not fit.
        """
        own = module.state_dict()
        attention = recognise_van(own).get('attention')
        check_convert(self.convert, attention)
        print_log(f'load model from: {self.checkpoint}', 'current')
        checkpoint = CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location)
        given = module.own_weights(_under(self.prefix, unwrap(checkpoint)))
        if STEM_OPTION in self.convert and STEM_KEY in given:
            in_channels = own[STEM_KEY].shape[1]
            given |= convert_stem(given, in_channels, self.convert[STEM_OPTION])
        module.load_state_dict(_convert_attention(given, attention))
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'WarmStart: from {self.checkpoint}')


def _under(prefix: str | None, weights: Mapping) -> dict:
    start = f'{prefix.removesuffix(".")}.' if prefix else ''
    return {key[len(start) :]: weights[key] for key in weights if key.startswith(start)}


def _convert_attention(given: dict, attention: Mapping) -> dict:
    """The weights with the model's attention, if they are of a VAN with another one."""
    source = recognise_van(given).get('attention')
    if source == attention or not recognise_van(given):
        return given
    converted, energies = convert_van(given, attention)
    for line in summarize(given, attention, energies):
        print_log(line, 'current')
    return converted


def check_convert(convert: Mapping, own: dict | None) -> None:
    """Check what ``init_cfg`` asks for against the attention of the model.

    Raises:
        ValueError: If an entry is unknown or differs from the model's, or if the model's attention
            is none that weights can be turned into.
    """
    allowed = (*ATTENTION_OPTIONS, STEM_OPTION)
    if not isinstance(convert, Mapping) or not set(convert) <= set(allowed):
        raise ValueError(
            f'convert={convert!r} is not possible: it is a dict, empty or with '
            f'{", ".join(ATTENTION_OPTIONS)} of the model, and {STEM_OPTION}'
        )
    if STEM_OPTION in convert:
        check_stem_option(convert[STEM_OPTION])
    if set(convert) == {STEM_OPTION}:
        return
    if not is_convertible(own):
        raise ValueError(
            f'convert makes weights of {" and ".join(PARTS)} only, but the model is built for '
            f'{describe_attention(own).text}'
        )
    for key, option in ATTENTION_OPTIONS.items():
        value, has = convert.get(key), own[option]
        if value is not None and str(value).upper() != str(has).upper():
            raise ValueError(
                f'convert states {key}={value!r}, but the model is built for '
                f'{name_attention(own)}. Leave {key} out of convert, or change the model'
            )


def check_source(weights: Mapping) -> dict:
    """The attention of a VAN's weights, if it can be turned into another one.

    Raises:
        CheckpointError: If it cannot.
    """
    source = recognise_van(weights).get('attention')
    if not is_convertible(source):
        raise CheckpointError(
            f'only {" and ".join(PARTS)} can be turned into another attention, but the checkpoint '
            f'holds {describe_attention(source).text}'
        )
    return source


def resolve_attention(attention: Mapping) -> dict:
    """An attention to turn weights into, with its dilation.

    Raises:
        ValueError: If it is neither LKA nor LSKA, or if its kernel has no exact decomposition. The
            message names what is allowed.
    """
    kind, kernel_size = str(attention['type']).upper(), attention['kernel_size']
    if kind not in PARTS:
        allowed = ', '.join(PARTS).lower()
        raise ValueError(f'attention {attention["type"]!r} is unknown: allowed are {allowed}')
    _, _, dilation = decompose_kernel(kernel_size, attention.get('dilation'))
    return dict(type=kind, kernel_size=kernel_size, dilation=dilation)


def convert_van(
    weights: Mapping[str, torch.Tensor],
    attention: Mapping,
    track: Callable[[list], Iterable] = iter,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """Turn the attention of every block of a VAN into another one.

    Args:
        weights (Mapping): Weights of a VAN with LKA or LSKA, under our names.
        attention (Mapping): ``type``, ``kernel_size`` and, where it is not the paper's,
            ``dilation`` of the new attention.
        track (Callable): Wraps the list of blocks, to show the progress. Defaults to ``iter``.

    Returns:
        tuple[dict, dict]: The new weights, in the order of the old ones; and for each block the
        energies that :func:`convert_gate` returns.

    Raises:
        CheckpointError: If the weights are of neither LKA nor LSKA, or if those of a block are
            incomplete, misshaped or not finite.
        ValueError: If there is no such attention. The message names what is allowed.
    """
    source, target = check_source(weights), resolve_attention(attention)
    gates = {}
    for key, value in weights.items():
        if match := GATE_KEY.fullmatch(key):
            gates.setdefault(match[1], {})[match[2]] = value
    converted, energies = {}, {}
    for block in track(list(gates)):
        try:
            gate, energies[block] = convert_gate(gates[block], source, target)
        except CheckpointError as error:
            message = f'the checkpoint cannot be converted: {block}.{GATE}{error}'
            raise CheckpointError(message) from None
        converted[block] = {f'{block}.{GATE}{name}': value for name, value in gate.items()}
    result = {}
    for key, value in weights.items():
        match = GATE_KEY.fullmatch(key)
        result.update(converted[match[1]] if match else {key: value})
    return result, energies


def summarize(weights: Mapping, attention: Mapping, energies: Mapping[str, dict]) -> list[str]:
    """A few lines on a conversion, for the log."""
    kept = (
        f'{name} {mean:.1%} (least {least:.1%})'
        for name, (mean, least) in energy_totals(energies).items()
    )
    source = recognise_van(weights)['attention']
    return [
        f'warm start: {name_attention(source)} becomes {name_attention(attention)} in '
        f'{len(energies)} blocks. {NOTE}',
        f'energy of the kernels that is kept, mean of the blocks: {", ".join(kept)}',
    ]


def energy_totals(energies: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and minimum over the blocks of each energy."""
    rows = list(energies.values())
    return {
        name: (sum(row[name] for row in rows) / len(rows), min(row[name] for row in rows))
        for name in rows[0]
    }
