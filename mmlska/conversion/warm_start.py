"""Warm start: weights of one large-kernel attention as a start for another."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit

from mmlska.checkpoint.reading import CheckpointError
from mmlska.checkpoint.recognition import GATE, describe_attention, recognise_van

from .gate_conversion import PARTS, convert_gate

CONV_NAMES = '|'.join(name for parts in PARTS.values() for part in parts for name in part)
GATE_KEY = re.compile(rf'(blocks\d+\.\d+)\.{re.escape(GATE)}((?:{CONV_NAMES})\.\w+)')
NOTE = 'It is a start for fine-tuning, not the published model of that kernel.'
CONVERT_OPTIONS = {'attention': 'type', 'kernel_size': 'kernel_size', 'dilation': 'dilation'}


class WarmStart:
    """Lets a backbone start from weights of another kernel, where its ``init_cfg`` asks for it.

    A mixin before :class:`mmlska.checkpoint.WholeLoading`. The entry ``convert`` of a 'Pretrained'
    ``init_cfg`` asks: ``convert=dict()`` turns the weights of any LKA or LSKA into those of the
    model's own attention, ``convert=dict(attention='LSKA', kernel_size=35)`` also states what that
    is. Only the initialisation converts; ``load_from``, ``resume`` and ``load_state_dict`` do not.
    """

    _converting_to: dict | None = None

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says.

        Raises:
            ValueError: If ``convert`` states another attention than the model's, or the model's is
                neither LKA nor LSKA.
            CheckpointError: If the weights are of neither, or do not fit.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else list(given or [])
        asked = [cfg['convert'] for cfg in cfgs if _is_pretrained(cfg) and 'convert' in cfg]
        if not asked:
            super().init_weights()
            return
        self._converting_to = check_convert(asked[0], self._attention_of(self.state_dict()))
        # mmengine hands all entries of the dict to its own initialiser, which does not know this.
        self.init_cfg = [{key: cfg[key] for key in cfg if key != 'convert'} for cfg in cfgs]
        try:
            super().init_weights()
        finally:
            self.init_cfg, self._converting_to = given, None

    def adapt_weights(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights as those of the model's own attention, while the initialisation asks."""
        if self._converting_to is None or not recognise_van(given):
            return given
        converted, energies = convert_van(given, self._converting_to)
        for line in summarize(given, self._converting_to, energies):
            print_log(line, 'current')
        return converted

    def more_remedies(self, given: Mapping, differing: Iterable[str]) -> list[str]:
        """A warm start, where nothing but the attention differs and both are of the family."""
        attentions = [self._attention_of(weights) for weights in (given, self.state_dict())]
        if set(differing) != {'attention'} or not all(map(is_convertible, attentions)):
            return []
        return ['start from their nearest likeness with convert=dict() in init_cfg']

    def _attention_of(self, weights: Mapping) -> dict | None:
        return recognise_van(weights, self.num_stages).get('attention')


def is_convertible(attention: Mapping | None) -> bool:
    """Whether weights can be turned into, and out of, an attention."""
    return attention is not None and attention['type'] in PARTS


def check_convert(convert: Mapping, own: dict | None) -> dict:
    """Check what ``init_cfg`` asks for against the attention of the model.

    Returns:
        dict: The attention of the model.

    Raises:
        ValueError: If an entry is unknown or differs from the model's, or if the model's attention
            is none that weights can be turned into.
    """
    if not isinstance(convert, Mapping) or not set(convert) <= set(CONVERT_OPTIONS):
        raise ValueError(
            f'convert={convert!r} is not possible: it is a dict, empty or with '
            f'{", ".join(CONVERT_OPTIONS)} of the model'
        )
    if not is_convertible(own):
        raise ValueError(
            f'convert makes weights of {" and ".join(PARTS)} only, but the model is built for '
            f'{describe_attention(own).text}'
        )
    for key, value in convert.items():
        has = own[CONVERT_OPTIONS[key]]
        if value is not None and str(value).upper() != str(has).upper():
            raise ValueError(
                f'convert states {key}={value!r}, but the model is built for '
                f'{name_attention(own)}. Leave {key} out of convert, or change the model'
            )
    return own


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
    # mmlska.models imports this module.
    from mmlska.models import decompose_kernel

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


def _is_pretrained(cfg: Mapping) -> bool:
    return cfg.get('type') in ('Pretrained', PretrainedInit)


def name_attention(attention: Mapping) -> str:
    """Kind, kernel size and dilation of an attention, in words."""
    return f'{describe_attention(attention).text} with dilation {attention["dilation"]}'
