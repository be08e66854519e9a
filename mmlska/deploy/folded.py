"""What a folded model has beside its own class."""

import functools
from typing import Any

import torch
from torch import nn

# Stands in the state dict, so that weights of folded and of other models cannot be taken for each
# other.
MARK = '_folded'


class Folded:
    """A folded model: it refuses to train, and the weights of models that are not folded."""

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode.

        Raises:
            RuntimeError: If ``mode`` is True.
        """
        if mode:
            raise RuntimeError(
                'a folded model cannot be trained: its norms have become part of its '
                'convolutions. Train the model that was given to fuse(), and fold it again'
            )
        return super().train(False)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if prefix + MARK not in state_dict:
            raise ValueError(
                'these weights are of a model that is not folded: load them into the model '
                'before fuse()'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __reduce__(self) -> tuple:
        return _blank, (type(self).__bases__[1],), self.__dict__


def as_folded(model: nn.Module) -> nn.Module:
    """Make a model one of class :class:`Folded` too, in place."""
    model.register_buffer(MARK, torch.tensor(True))
    model.__class__ = _folded_class(type(model))
    return model


@functools.cache
def _folded_class(kind: type) -> type:
    return type(f'Folded{kind.__name__}', (Folded, kind), {'__doc__': kind.__doc__})


def _blank(kind: type) -> Any:
    """What copying and unpickling begin with: the class has no place where they could find it."""
    folded = _folded_class(kind)
    return folded.__new__(folded)
