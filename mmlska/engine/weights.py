"""Loading a trained model for use: all of its weights, or an error."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import nn

from mmlska.checkpoint.naming import without_wrappers

SHOWN = 4


def load_all_weights(model: nn.Module, weights: Mapping, checkpoint: str) -> None:
    """Load weights into a whole detector or segmentor.

    Where mmengine logs what does not fit and goes on with random weights, this is an error. Weights
    that the model does not have are logged in one line.

    Args:
        model: A detector or segmentor.
        weights: Its state dict; keys may carry the prefixes of torch's wrappers.
        checkpoint: Where they come from, for messages.

    Raises:
        ValueError: If weights of the model are missing or have another shape.
    """
    weights = {without_wrappers(key): value for key, value in weights.items()}
    refusal = f'the checkpoint {checkpoint!r} is not of this {type(model).__name__}'
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f'{refusal}: {first_lines(error)}') from error
    if missing:
        raise ValueError(f'{refusal}: it lacks {counted(missing)}')
    if unexpected:
        print_log(
            f'the model has no place for {counted(unexpected)} of {checkpoint}',
            logger='current',
            level=logging.WARNING,
        )


def counted(keys: list[str]) -> str:
    """How many keys there are, and the first of them."""
    more = ', ...' if len(keys) > SHOWN else ''
    return f'{len(keys)} weights ({", ".join(keys[:SHOWN])}{more})'


def first_lines(error: Exception) -> str:
    """The beginning of a message that may go on for hundreds of lines."""
    lines = [line.strip() for line in str(error).splitlines()]
    return '\n  '.join(lines[: SHOWN + 1] + ['...'] * (len(lines) > SHOWN + 1))
