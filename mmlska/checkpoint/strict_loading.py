import logging
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.logging import print_log
from torch import nn

from mmlska.layers.official_names import rename_keys

from .naming import HEAD_KEY, TO_MMLSKA, canonical
from .reading import CheckpointError, unwrap
from .recognition import Trait

SHOWN_KEYS = 6


class WholeLoading:
    """Makes a backbone take the weights of other codebases, completely or with an error.

    A mixin before ``BaseModule``. It works wherever a state dict arrives: ``load_state_dict``, the
    ``init_cfg`` and ``load_from`` of mmengine, alone or as the backbone of a detector. Keys may
    carry ``module.`` and ``backbone.``, and the dict may be wrapped as :func:`unwrap` knows.

    Allowed to differ, each logged in one line: a classification head or the other parts of a
    detector in the file, stages that the model does not build, and plugins that the file lacks.
    """

    has_loaded_weights = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_post_hook(_forget_offered_keys)

    def describe_weights(self, state_dict: Mapping) -> dict[str, Trait]:
        """What the names and shapes of weights tell, by config option; for messages."""
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

    def adapt_weights(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights, under our names, as they are to be loaded."""
        return given

    def more_remedies(self, given: Mapping, differing: Iterable[str]) -> list[str]:
        """What else the user can do about weights that differ in these config options."""
        return []

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        under_prefix = [key for key in state_dict if key.startswith(prefix)]
        given = {key[len(prefix) :]: state_dict.pop(key) for key in under_prefix}
        own = _take_backbone(given, self.is_head)
        self.note_origin(list(own))
        rename_keys(own, '', TO_MMLSKA)
        fitted = self._fit(self.adapt_weights(own))
        state_dict.update({prefix + key: value for key, value in fitted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.has_loaded_weights = True

    def _fit(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights for the model, or an error that tells how they differ from it."""
        expected = self.state_dict()
        left_over = [key for key in given if key not in expected]
        missing = [key for key in expected if key not in given]
        missing = [key for key in missing if not key.endswith('.num_batches_tracked')]
        misshaped = [
            f'{key} (checkpoint {_shape(given[key])}, model {_shape(expected[key])})'
            for key in given
            if key in expected and _shape(given[key]) != _shape(expected[key])
        ]
        tolerated = [key for key in left_over if self.may_be_left_over(key)]
        plugins_in_file = any(self.may_be_missing(key) for key in given)
        kept = [] if plugins_in_file else [key for key in missing if self.may_be_missing(key)]
        problems = {
            'missing in the checkpoint': [key for key in missing if key not in kept],
            'superfluous in the checkpoint': [key for key in left_over if key not in tolerated],
            'of another shape': misshaped,
        }
        if any(problems.values()):
            raise CheckpointError(self._explain(given, problems))
        _log('weights of stages that are not built are left out', tolerated)
        _log('the checkpoint holds no plugins; they keep their initial weights', kept)
        print_log(f'{type(self).__name__}: all {len(expected)} weights are loaded', 'current')
        return {key: given.get(key, value) for key, value in expected.items()}

    def _explain(self, given: dict, problems: dict[str, list[str]]) -> str:
        name = type(self).__name__
        theirs, ours = self.describe_weights(given), self.describe_weights(self.state_dict())
        differing = {key: value for key, value in theirs.items() if value != ours.get(key)}
        reasons = [_contrast(value.text, ours[key].text) for key, value in differing.items()]
        if not given:
            reasons = ['the checkpoint holds nothing for it']
        elif not theirs:
            reasons = [f'the checkpoint is of no {name}, it holds {", ".join(list(given)[:3])}']
        lines = [f'{name} loads none of these weights: {"; ".join(reasons) or "they do not fit"}.']
        if differing:
            fixes = ', '.join(f'{key}={value.config}' for key, value in differing.items())
            remedies = [f'Build the model with {fixes}', *self.more_remedies(given, differing)]
            lines.append(f'{", ".join(remedies)}, or use other weights.')
        for problem, keys in problems.items():
            if keys:
                more = f' and {len(keys) - SHOWN_KEYS} more' if len(keys) > SHOWN_KEYS else ''
                lines.append(f'{len(keys)} {problem}: {", ".join(keys[:SHOWN_KEYS])}{more}')
        return '\n'.join(lines)


def _take_backbone(given: Mapping, is_head: Callable[[str], bool]) -> dict:
    """The weights of the backbone alone, under the names that they bear in the file."""
    state = dict(unwrap(given))
    for prefix in ('module.', 'backbone.', 'module.'):
        inside = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix)
        }
        if inside:
            outside = [key for key in state if not key.startswith(prefix)]
            other = [key for key in outside if key not in inside]
            _log(f'parts of the checkpoint beside {prefix}* are left out', other)
            state = inside
    heads = [key for key in state if is_head(key)]
    _log('the classification head of the checkpoint is left out', heads)
    for key in heads:
        del state[key]
    return state


def _forget_offered_keys(module: nn.Module, incompatible_keys) -> None:
    """Take the bare names of a backbone's weights off a detector's list of unexpected keys.

    They are offered twice, see :func:`mmlska.checkpoint.load_from_local`.
    """
    own = module.state_dict()
    unexpected = incompatible_keys.unexpected_keys
    unexpected[:] = [
        key for key in unexpected if canonical(key) not in own and not module.is_head(key)
    ]


def _contrast(theirs: str, ours: str) -> str:
    kind = re.match(r'\S+ kernel ', theirs)
    if kind and ours.startswith(kind.group()):
        ours = ours.removeprefix(kind.group()).replace(' dilated', '')
    return f'the checkpoint holds {theirs}, the model is built for {ours}'


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(getattr(tensor, 'shape', ()))


def _log(what: str, keys: list[str]) -> None:
    if keys:
        print_log(f'{what} ({len(keys)}, first {keys[0]})', 'current', logging.INFO)
