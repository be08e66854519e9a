"""Putting weights into a backbone: completely, or with an error that tells how they differ.

The way of weights from a file into a model: ``read_checkpoint`` reads (:mod:`.reading`),
``find_backbone`` finds them in the file (:mod:`.recognition`), ``to_mmlska`` renames them
(:mod:`.naming`), :func:`compare` checks them, and here they are copied. Each step but the last is a
function of a dict.
"""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import nn

from .files import CheckpointError
from .naming import HEAD_KEY, canonical, find_places, to_mmlska
from .reading import check_keys, unwrap
from .recognition import Trait, find_backbone, shape_of

SHOWN_KEYS = 6
# Name of what a fused model has beside its weights, see `mmlska.deploy`: as weights of a model with
# norms its own compute something else, however many of them fit.
FUSED_MARK = '_fused'
# Share of a model's names that weights of such a model have at least, be they damaged.
ALIKE = 0.9
BLOCK = re.compile(r'.*?\.\d+(?:\.\d+)?(?=\.)')


class Comparison(NamedTuple):
    """How weights differ from those of a model.

    Attributes:
        missing (list[str]): Names of the model that the weights lack.
        superfluous (list[str]): Names that the model lacks.
        misshaped (list[str]): Names and both shapes where they differ.
        unusable (list[str]): Names of values that cannot be copied, each with the reason.
    """

    missing: list[str]
    superfluous: list[str]
    misshaped: list[str]
    unusable: list[str]

    @property
    def is_damaged(self) -> bool:
        """Whether a value itself does not fit, which no way of loading allows."""
        return bool(self.misshaped or self.unusable)


def compare(given: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> Comparison:
    """Compare weights with those of a model, both under our names.

    Counters of batch norms may be missing: norms without them begin to count anew.
    """
    common = [key for key in given if key in expected]
    reasons = {key: why_unusable(given[key], expected[key]) for key in common}
    fused = [f'{FUSED_MARK} (these are weights of a fused model)']
    return Comparison(
        missing=[
            key for key in expected if key not in given and not key.endswith('.num_batches_tracked')
        ],
        superfluous=[key for key in given if key not in expected],
        misshaped=[
            f'{key} (checkpoint {shape_of(given[key])}, model {shape_of(expected[key])})'
            for key in common
            if not reasons[key] and shape_of(given[key]) != shape_of(expected[key])
        ],
        unusable=[
            *[f'{key} ({reasons[key]})' for key in common if reasons[key]],
            *(fused if FUSED_MARK in given and FUSED_MARK not in expected else []),
        ],
    )


def why_unusable(value: Any, expected: torch.Tensor) -> str | None:
    """Why a value cannot become that of a weight; None if it can, its shape aside.

    PyTorch passes over some of these, and mmengine hides what it says about the others: the weight
    would stay at its random start.
    """
    if not isinstance(value, torch.Tensor):
        return f'a {type(value).__name__}, and no tensor'
    checks = {
        'a tensor without values, on the meta device': value.is_meta,
        f'a tensor of layout {value.layout}, not dense': value.layout != torch.strided,
        'a quantized tensor': value.is_quantized,
        'a nested tensor': value.is_nested,
        f'numbers of type {value.dtype}': not _is_castable(value.dtype, expected.dtype),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _is_castable(given: torch.dtype, expected: torch.dtype) -> bool:
    if expected.is_floating_point:
        return given.is_floating_point
    # A conversion to half precision takes the counters of batch norms along.
    return given == expected or not (given == torch.bool or given.is_complex)


class _Copying(NamedTuple):
    """What is known between the start and the end of one copy."""

    loaded: int
    comparison: Comparison
    explanation: str
    errors: list[str]
    errors_before: int
    start: dict[str, torch.Tensor]


def check_prefixes(module: nn.Module) -> None:
    """Check the ``prefix`` of each pretrained ``init_cfg`` of a module, where mmengine asserts.

    Raises:
        CheckpointError: If no weight of the file begins with it. The message names those that do.
    """
    given = getattr(module, 'init_cfg', None) or []
    for cfg in [given] if isinstance(given, dict) else given:
        if cfg.get('type') not in ('Pretrained', PretrainedInit) or not cfg.get('prefix'):
            continue
        path, prefix = cfg['checkpoint'], cfg['prefix'].removesuffix('.') + '.'
        checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
        names = list(checkpoint.get('state_dict', checkpoint))
        if not any(name.startswith(prefix) for name in names):
            starts = find_places(names) or sorted({f'{name.partition(".")[0]}.' for name in names})
            nearest = difflib.get_close_matches(prefix, starts, n=1)
            raise CheckpointError(
                f'no weight of {path!r} begins with prefix={cfg["prefix"]!r}; they begin with '
                f'{_shown(list(map(repr, filter(None, starts)))) or "no prefix: leave it out"}'
                + (f'. Perhaps {nearest[0]!r} is meant' if nearest else '')
            )


class WholeLoading:
    """Makes a backbone take the weights of other codebases, completely or with an error.

    A mixin before ``BaseModule``. It works wherever a state dict arrives: ``load_state_dict``, the
    ``init_cfg`` and ``load_from`` of mmengine, alone or as the backbone of a detector. The weights
    may lie in any module of the file, and the dict may be wrapped as :func:`unwrap` knows.

    Allowed to differ, each logged in one line: a classification head or the other parts of a
    detector in the file, stages that the model does not build, and plugins that the file lacks.
    ``load_state_dict(..., strict=False)`` of a user's own takes what fits, as PyTorch does, and
    tells in one warning what stayed at its start; a value that cannot be copied stays an error.
    """

    has_loaded_weights = False
    _is_strict: bool | None = None
    _copying: _Copying | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_post_hook(_finish)

    def describe_weights(self, state_dict: Mapping) -> dict[str, Trait]:
        """What the names and shapes of weights tell, by config option; for messages.

        Raises:
            TypeError: If a derived class does not say.
        """
        raise TypeError(f'{type(self).__name__} does not describe its weights')

    def may_be_left_over(self, key: str) -> bool:
        """Whether a weight of the file that the model does not have is no mistake."""
        return False

    def may_be_missing(self, key: str) -> bool:
        """Whether a weight of the model that the file does not have is no mistake."""
        return False

    def is_head(self, key: str) -> bool:
        """Whether a weight of the file belongs to a classification head."""
        return HEAD_KEY.fullmatch(key) is not None

    def note_origin(self, keys: list[str]) -> None:
        """Say what the user should know of the codebase that named the weights so."""

    def more_remedies(self, given: Mapping, differing: Iterable[str]) -> list[str]:
        """What else the user can do about weights that differ in these config options."""
        return []

    def init_weights(self) -> None:
        """Initialise as mmengine does.

        Raises:
            CheckpointError: If ``init_cfg`` names a prefix that no weight of its file has. The
                message names those that there are.
        """
        check_prefixes(self)
        super().init_weights()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights of any codebase.

        Args:
            state_dict (Mapping): Weights, wrapped or not, under any prefix.
            strict (bool): Whether to load all or nothing; False takes what fits.
            assign (bool): As in :meth:`torch.nn.Module.load_state_dict`.

        Returns:
            Missing and unexpected keys, as PyTorch returns them.

        Raises:
            CheckpointError: If the weights do not fit; without ``strict``, only if a value cannot
                be copied. The message names the keys.
        """
        check_keys(state_dict)
        self._is_strict = strict
        try:
            return super().load_state_dict(state_dict, strict, assign)
        finally:
            self._is_strict = self._copying = None

    def own_weights(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The backbone's weights of a checkpoint under our names; what is left out is logged."""
        names = self.state_dict().keys()
        weights = unwrap(state_dict)
        check_keys(weights)
        parts = find_backbone(weights, names.__contains__)
        _log(f'parts of the checkpoint beside {parts.prefix}* are left out', list(parts.outside))
        heads = [key for key in parts.backbone if self.is_head(key)]
        _log('the classification head of the checkpoint is left out', heads)
        own = {key: value for key, value in parts.backbone.items() if key not in heads}
        self.note_origin(list(own))
        renamed = to_mmlska(own)
        tolerated = [key for key in renamed if key not in names and self.may_be_left_over(key)]
        _log('weights of stages that are not built are left out', tolerated)
        return {key: value for key, value in renamed.items() if key not in tolerated}

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        under_prefix = [key for key in state_dict if key.startswith(prefix)]
        given = {key[len(prefix) :]: state_dict.pop(key) for key in under_prefix}
        given, expected = self.own_weights(given), self.state_dict()
        comparison = self._tolerate_plugins(given, compare(given, expected))
        explanation = self._explain(given, comparison, prefix) if any(comparison) else ''
        if comparison.is_damaged or (explanation and self._is_strict):
            raise CheckpointError(explanation)
        common = {key: value for key, value in given.items() if key in expected}
        _warn_of_non_finite(common)
        if not explanation and self._is_strict is not False:
            given = {key: given.get(key, value) for key, value in expected.items()}
        # Whether a part may be loaded, the end of the copy will show: then it is known who asks.
        start = {key: value.clone() for key, value in expected.items()} if explanation else {}
        self._copying = _Copying(
            len(common), comparison, explanation, error_msgs, len(error_msgs), start
        )
        state_dict.update({prefix + key: value for key, value in given.items()})
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def _tolerate_plugins(self, given: Mapping, comparison: Comparison) -> Comparison:
        """The comparison without plugins, where the file has none at all."""
        kept = [key for key in comparison.missing if self.may_be_missing(key)]
        if any(self.may_be_missing(key) for key in given):
            return comparison
        _log('the checkpoint holds no plugins; they keep their initial weights', kept)
        missing = [key for key in comparison.missing if key not in kept]
        return comparison._replace(missing=missing)

    def _explain(self, given: dict, comparison: Comparison, prefix: str) -> str:
        name, own = type(self).__name__, self.state_dict()
        theirs, ours = self.describe_weights(given), self.describe_weights(own)
        differing = {key: value for key, value in theirs.items() if value != ours.get(key)}
        reasons = [_contrast(value.text, ours[key].text) for key, value in differing.items()]
        if not given:
            held = f'no name of the checkpoint begins with {prefix!r}, and it is no bare {name}'
            reasons = [held if prefix else 'the checkpoint holds nothing']
        elif _fits(comparison) and (not theirs or _is_part(given, comparison)):
            differing = {}
            reasons = [
                f'the checkpoint holds {len(given)} of its {len(own)} weights, which fit, and '
                'lacks the others: it is one of several files, or was written in part'
            ]
        elif not theirs and len(set(given) & set(own)) < ALIKE * len(own):
            reasons = [f'the checkpoint is of no {name}, it holds {", ".join(list(given)[:3])}']
        lines = [f'{name} loads none of these weights: {"; ".join(reasons) or "they do not fit"}.']
        if differing:
            fixes = ', '.join(f'{key}={value.config}' for key, value in differing.items())
            remedies = [f'Build the model with {fixes}', *self.more_remedies(given, differing)]
            lines.append(f'{", ".join(remedies)}, or use other weights.')
        return '\n'.join([*lines, *list_problems(comparison)])


def _fits(comparison: Comparison) -> bool:
    """Whether a model has a place for all weights, though it may need more."""
    return not comparison.superfluous and not comparison.is_damaged


def _is_part(given: Mapping, comparison: Comparison) -> bool:
    """Whether weights fit as far as they go, but end in the middle of a block.

    A model with fewer blocks, or stages, has all weights of those that it has; one of another kind
    lacks the same ones in every block.
    """
    begun = {_block(key) for key in given}
    known = {key.removeprefix(_block(key)) for key in given}
    cut = [key for key in comparison.missing if _block(key) in begun]
    return any(key.removeprefix(_block(key)) in known for key in cut)


def _block(key: str) -> str:
    """What the name of a weight shares with the others of its block."""
    found = BLOCK.match(key)
    return found[0] if found else key.partition('.')[0]


def _finish(module: WholeLoading, incompatible_keys: Any) -> None:
    """End a copy: say what was copied, or take it back.

    PyTorch hands its own kind of list to this hook where a user's ``load_state_dict`` has called,
    of the backbone or of a detector around it, and takes care of ``strict`` itself. Whoever else
    calls, as mmengine's ``init_cfg`` and ``load_from`` do, would only log what is missing.
    """
    copying, module._copying = module._copying, None
    if copying is None:
        return
    of_pytorch = type(incompatible_keys).__module__.startswith('torch.')
    if not of_pytorch:
        _forget_offered_keys(module, incompatible_keys.unexpected_keys)
    failed = copying.errors[copying.errors_before :]
    if failed or (copying.explanation and not of_pytorch):
        _restore(module, copying.start)
        raise CheckpointError('\n'.join(filter(None, [copying.explanation, *failed])))
    _tell(module, copying)


def _tell(module: WholeLoading, copying: _Copying) -> None:
    name, state = type(module).__name__, module.state_dict()
    if any(value.is_meta for value in state.values()):
        print_log(f'{name} is on the meta device: it takes no weights', 'current', logging.WARNING)
        return
    module.has_loaded_weights = module.has_loaded_weights or copying.loaded > 0
    if not copying.explanation:
        print_log(f'{name}: all {len(state)} weights are loaded', 'current')
        return
    lines = [
        f'{name}: {copying.loaded} of {len(state)} weights are loaded, the others keep their start',
        *list_problems(copying.comparison),
    ]
    print_log('\n'.join(lines), 'current', logging.WARNING)


@torch.no_grad()
def _restore(module: nn.Module, start: Mapping[str, torch.Tensor]) -> None:
    state = module.state_dict()
    for key, value in start.items():
        state[key].copy_(value)


def _forget_offered_keys(module: WholeLoading, unexpected: list[str]) -> None:
    """Take the bare names of a backbone's weights off a detector's list of unexpected keys.

    They are offered twice, see :func:`mmlska.checkpoint.load_from_local`.
    """
    own = module.state_dict()
    unexpected[:] = [
        key for key in unexpected if canonical(key) not in own and not module.is_head(key)
    ]


def _warn_of_non_finite(given: Mapping[str, torch.Tensor]) -> None:
    # Of numbers of one byte PyTorch does not tell.
    wide = {key: value.float() if value.itemsize == 1 else value for key, value in given.items()}
    keys = [key for key, value in wide.items() if not value.isfinite().all()]
    if keys:
        print_log(
            f'weights of the checkpoint that are not finite: {_shown(keys)}',
            'current',
            logging.WARNING,
        )


def list_problems(comparison: Comparison) -> list[str]:
    """What is wrong with weights, a line for each kind of fault."""
    problems = {
        'missing in the checkpoint': comparison.missing,
        'superfluous in the checkpoint': comparison.superfluous,
        'of another shape': comparison.misshaped,
        'unusable': comparison.unusable,
    }
    return [f'{len(keys)} {problem}: {_shown(keys)}' for problem, keys in problems.items() if keys]


def _shown(keys: list[str]) -> str:
    more = f' and {len(keys) - SHOWN_KEYS} more' if len(keys) > SHOWN_KEYS else ''
    return f'{", ".join(keys[:SHOWN_KEYS])}{more}'


def _contrast(theirs: str, ours: str) -> str:
    kind = re.match(r'\S+ kernel ', theirs)
    if kind and ours.startswith(kind.group()):
        ours = ours.removeprefix(kind.group()).replace(' dilated', '')
    return f'the checkpoint holds {theirs}, the model is built for {ours}'


def _log(what: str, keys: list[str]) -> None:
    if keys:
        print_log(f'{what} ({len(keys)}, first {keys[0]})', 'current', logging.INFO)
