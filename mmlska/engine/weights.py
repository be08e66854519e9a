"""Loading a trained model for use: all of its weights, or an error."""

import logging
from collections import Counter
from collections.abc import Container, Iterator, Mapping, MutableMapping

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import nn

from mmlska.checkpoint import CheckpointError, WholeLoading, unwrap
from mmlska.checkpoint.naming import without_wrappers
from mmlska.checkpoint.resnet_naming import count_blocks, is_of_timm
from mmlska.checkpoint.strict_loading import compare, why_unusable
from mmlska.conversion.stem import STEM_OPTIONS

SHOWN = 4


def load_all_weights(model: nn.Module, weights: Mapping, checkpoint: str) -> None:
    """Load weights into a whole detector or segmentor.

    Where mmengine logs what does not fit and goes on with random weights, this is an error. Weights
    that the model does not have are logged in one line.

    Args:
        model: A detector or segmentor.
        weights: Its state dict; keys may carry the prefixes of torch's wrappers, and that of a
            module around the model.
        checkpoint: Where they come from, for messages.

    Raises:
        ValueError: If weights of the model are missing or have another shape.
    """
    weights = {without_wrappers(key): value for key, value in weights.items()}
    offer_to_model(model, weights)
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


def check_values(module: nn.Module, weights: Mapping) -> None:
    """Refuse values that would be passed over in silence.

    mmengine loads a backbone of another library without a word on what cannot be copied.

    Args:
        module: A backbone, or a model around one.
        weights: Weights under its names.

    Raises:
        CheckpointError: If a weight of the module is no dense tensor with values of its kind. The
            message names the keys.
    """
    reasons = {
        key: why_unusable(weights[key], value)
        for key, value in module.state_dict().items()
        if key in weights and isinstance(value, torch.Tensor)
    }
    unusable = [f'{key} ({reason})' for key, reason in reasons.items() if reason]
    if unusable:
        raise CheckpointError(
            f'{type(module).__name__} loads none of these weights: {counted(unusable)} '
            'cannot be copied'
        )


def check_init_cfg(backbone: nn.Module) -> None:
    """Check that mmengine's 'Pretrained' has filled a backbone of another library.

    Backbones that read the file themselves, as mmdet's Swin does, know best what they do with it.

    Raises:
        CheckpointError: See :func:`check_values`; or if the file holds no weight of the backbone,
            weights of other shapes, or names of timm's ResNet, which mmengine passes over.
    """
    given = getattr(backbone, 'init_cfg', None) or []
    for cfg in [given] if isinstance(given, dict) else given:
        if cfg.get('type') not in ('Pretrained', PretrainedInit):
            continue
        path = cfg['checkpoint']
        weights = unwrap(CheckpointLoader.load_checkpoint(path, 'cpu'))
        prefix = cfg.get('prefix') or ''
        start = f'{prefix.removesuffix(".")}.' if prefix else ''
        bare = {without_wrappers(key).removeprefix(start): weights[key] for key in weights}
        if not set(bare) & set(backbone.state_dict()):
            raise CheckpointError(
                f'{type(backbone).__name__} finds none of its weights in {path!r}, which holds '
                f'{counted(list(weights))}'
            )
        check_values(backbone, bare)
        if getattr(type(backbone), 'init_weights', None) in (None, BaseModule.init_weights):
            check_passed_over(backbone, bare, path)


def check_passed_over(backbone: nn.Module, weights: Mapping, path: str) -> None:
    """Refuse weights that mmengine's 'Pretrained' passes over with a line in the log.

    Raises:
        CheckpointError: If they have other shapes than the backbone's, or are named as in timm.
    """
    name, own = type(backbone).__name__, backbone.state_dict()
    way = f"init_cfg=dict(type='mmlska.PretrainedBackbone', checkpoint={path!r}"
    if count_blocks(own) and is_of_timm(weights) and not is_of_timm(own):
        raise CheckpointError(
            f'{path!r} bears the names of timm, under which {name} finds a part of its weights '
            f'alone. {way}) takes them all'
        )
    misshaped = compare(weights, own).misshaped
    if misshaped:
        options = ' or '.join(map(repr, STEM_OPTIONS))
        raise CheckpointError(
            f'{name} would keep random weights where those of {path!r} have another shape: '
            f'{counted(misshaped)}. If these are the channels of the images, {way}, '
            f'convert=dict(in_channels=HOW)) makes a stem, with HOW one of {options}; else build '
            'the backbone that the file is of, with the kernels of its layers'
        )


def offer_to_backbone(model: nn.Module, weights: MutableMapping) -> None:
    """Name the weights of a bare backbone as those of the model's backbone, in place.

    Args:
        model: A detector or segmentor.
        weights: Weights of its backbone alone. Those of a whole model are left as they are.
    """
    names = set(getattr(model, 'backbone', nn.Identity()).state_dict())
    bare = [key for key in weights if key in names]
    if not bare or any(key.startswith('backbone.') for key in weights):
        return
    for key in bare:
        weights[f'backbone.{key}'] = weights.pop(key)
    print_log(f'the checkpoint is of a backbone: the model takes {len(bare)} weights', 'current')


def loaded_whole(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names in backbones of ours, which load whole or not at all."""
    modules = model.named_modules()
    return tuple(f'{name}.' for name, module in modules if isinstance(module, WholeLoading))


def offer_to_model(model: nn.Module, weights: MutableMapping) -> None:
    """Take the prefix of a module around the model off the names of its weights, in place.

    Lightning's modules hold a model as ``model.``, and save it so.

    Args:
        model: A detector or segmentor.
        weights: Weights of the model. Where some bear the names of the model itself, beside those
            of its backbone, or no one prefix stands before most of its names, they are left as they
            are.
    """
    names = set(model.state_dict())
    own = {name for name in names if not name.startswith('backbone.')}
    found = Counter(start for key in weights for start in starts_before(key, names))
    (prefix, count), *others = found.most_common(2) or [('', 0)]
    is_tied = any(number == count for _, number in others)
    if not own or own & set(weights) or is_tied or 2 * count < len(names):
        return
    for key in [key for key in weights if key.startswith(prefix)]:
        weights[key.removeprefix(prefix)] = weights.pop(key)
    print_log(f'the weights of the model are those under {prefix!r} of the checkpoint', 'current')


def starts_before(key: str, names: Container[str]) -> Iterator[str]:
    """What stands before each end of a key that is one of some names.

    >>> list(starts_before('model.neck.weight', {'neck.weight', 'weight'}))
    ['model.', 'model.neck.']
    """
    for end, letter in enumerate(key, 1):
        if letter == '.' and key[end:] in names:
            yield key[:end]


def counted(keys: list[str]) -> str:
    """How many keys there are, and the first of them."""
    more = ', ...' if len(keys) > SHOWN else ''
    return f'{len(keys)} weights ({", ".join(keys[:SHOWN])}{more})'


def first_lines(error: Exception) -> str:
    """The beginning of a message that may go on for hundreds of lines."""
    lines = [line.strip() for line in str(error).splitlines()]
    return '\n  '.join(lines[: SHOWN + 1] + ['...'] * (len(lines) > SHOWN + 1))
