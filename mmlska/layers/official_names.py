"""Names that the official code of a layer gives to its weights."""

import re
from collections.abc import Callable, MutableMapping, Sequence

from torch import nn

# Patterns, and what takes their place: as for :func:`re.sub`, a text or a function of the match.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]


def rename(key: str, rules: Rules) -> str:
    """A name after all patterns and replacements, applied one after the other."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def rename_keys(state_dict: MutableMapping, prefix: str, rules: Rules) -> None:
    """Rename the weights under ``prefix``, in place and in their order.

    Args:
        state_dict (MutableMapping): Weights.
        prefix (str): What the names of the weights begin with; the rules see what follows it.
        rules (Rules): Patterns and replacements.

    Raises:
        KeyError: If two names stand for the same weight.
    """
    renamed = {}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = prefix + rename(key[len(prefix) :], rules)
        if name in renamed:
            raise KeyError(f'the checkpoint holds {name!r} twice, once as {key!r}')
        renamed[name] = state_dict.pop(key)
    state_dict.update(renamed)


def take_official_names(
    module: nn.Module, state_dict: MutableMapping, prefix: str, rules: Rules
) -> None:
    """Rename the weights of a module, unless they are just those that it has, under our names.

    They do inside a backbone, which has renamed all of its weights at once.

    Args:
        module (nn.Module): The module that the weights are for.
        state_dict (MutableMapping): Weights, renamed in place.
        prefix (str): What the names of the module's weights begin with.
        rules (Rules): Patterns and replacements.

    Raises:
        KeyError: If two names stand for the same weight.
    """
    given = {key for key in state_dict if key.startswith(prefix)}
    if given != {prefix + name for name in module.state_dict()}:
        rename_keys(state_dict, prefix, rules)
