"""Channels that a backbone hands out against those that its neck or head is built for."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.nn.parameter import is_lazy

from mmlska.engine.bare_model import bare_model, config_path
from mmlska.registry import HOOKS

# Side of the largest map of a trial: seven maps, each half as large as the one before, have a side.
TRIAL_SIDE = 64
# Heads that take whole maps, those of segmentors and those of detectors.
HEADS = (
    'decode_head',
    'auxiliary_head',
    'rpn_head',
    'bbox_head',
    'mask_head',
    'semantic_head',
    'panoptic_head',
)


class Consumer(NamedTuple):
    """A module that takes the maps of another one."""

    name: str
    module: nn.Module


def check_channels(model: nn.Module) -> None:
    """Find a neck, or a head that takes whole maps, that the maps of the backbone do not fit.

    Where the config's ``in_channels`` are not those that the backbone hands out, in this order, the
    module is tried on maps of zeros: some necks list the deepest map first, some heads take a
    choice of the maps, or join them. It is refused only if it runs on maps of the channels that it
    is built for and fails on those of the backbone, or if one of its convolutions gets a map of the
    backbone that it cannot take. What cannot be decided passes: backbones that do not tell their
    ``out_channels``, and modules that take something else than maps.

    Args:
        model (nn.Module): A detector or segmentor, or a model around one, such as a tracker.

    Raises:
        ValueError: If a module does not fit. The message names the config option and its value.
    """
    for name, part in model.named_modules():
        if isinstance(getattr(getattr(part, 'backbone', None), 'out_channels', None), tuple):
            _check_parts(part, f'{config_path(name)}.' if name else '')


def _check_parts(model: nn.Module, prefix: str) -> None:
    """Check neck and heads of a model whose options begin with a prefix."""
    backbone, offered = model.backbone, model.backbone.out_channels
    source, neck = f'{type(backbone).__name__} hands out', getattr(model, 'neck', None)
    if neck is not None:
        first = neck[0] if isinstance(neck, nn.Sequential) else neck
        _check_fit(Consumer(f'{prefix}neck', first), offered, source)
        _check_convs(Consumer(f'{prefix}neck', first), offered, source)
        source, offered = 'the neck hands out', _made_by(neck, offered)
    for head in _heads(model, prefix) if offered else ():
        _check_index(head, offered, source)
        _check_fit(head, offered, source)
        _check_convs(head, offered, source)


def _heads(model: nn.Module, prefix: str) -> Iterator[Consumer]:
    for name in HEADS:
        head = getattr(model, name, None)
        parts = list(enumerate(head)) if isinstance(head, nn.ModuleList) else [('', head)]
        for index, part in parts:
            # In a head with queries the decoder of pixels alone takes the maps.
            part = getattr(part, 'pixel_decoder', part)
            if part is not None:
                yield Consumer(f'{prefix}{name}.{index}'.rstrip('.'), part)


def _made_by(neck: nn.Module, channels: Sequence[int]) -> tuple[int, ...]:
    """Channels of the maps that a neck makes, none if that is not known."""
    maps = _outputs_of(neck, _trial_maps(neck, channels))
    is_list = isinstance(maps, (list, tuple))
    if not is_list or not all(isinstance(x, torch.Tensor) and x.dim() == 4 for x in maps):
        return ()
    return tuple(x.shape[1] for x in maps)


def _check_index(head: Consumer, offered: Sequence[int], source: str) -> None:
    """Refuse an index beyond the maps that there are."""
    index = getattr(head.module, 'in_index', None)
    count = len(offered)
    if any(not -count <= i < count for i in _as_list(index)):
        raise ValueError(
            f'model.{head.name}.in_index={index} does not fit: {source} {count} maps, with '
            f'{list(offered)} channels. Allowed are 0 to {count - 1}'
        )


def _check_fit(consumer: Consumer, offered: Sequence[int], source: str) -> None:
    """Refuse a module that runs on its own channels and not on those that are offered."""
    expected = getattr(consumer.module, 'in_channels', None)
    index = getattr(consumer.module, 'in_index', None)
    taken = list(offered) if index is None else [offered[i] for i in _as_list(index)]
    if expected is None or _as_list(expected) == taken:
        return
    trials = list(_own_maps(consumer.module, expected, offered))
    works = next((fit for maps, fit in trials if _runs(consumer.module, maps)), None)
    if works is None or _runs(consumer.module, offered):
        return
    right = works(taken)
    raise ValueError(
        f'model.{consumer.name}.in_channels={expected} does not fit: {source} maps with '
        f'{list(offered)} channels. Set model.{consumer.name}.in_channels={right}'
    )


def _own_maps(module: nn.Module, expected: int | Sequence[int], offered: Sequence[int]) -> Iterator:
    """Channels of maps that a module may be built for, and what its option is for other maps."""
    index = getattr(module, 'in_index', None)
    if index is None and isinstance(expected, int):
        yield [expected] * len(offered), lambda taken: taken[-1]
    elif index is None:
        yield list(expected), list
        yield list(expected)[::-1], lambda taken: taken[::-1]
    else:
        # Joined maps are known by the sum of their channels.
        places, joined = _as_list(index), getattr(module, 'input_transform', None)
        is_sum = joined == 'resize_concat'
        own = [expected - len(places) + 1, *[1] * (len(places) - 1)] if is_sum else expected
        maps = list(offered)
        for place, channels in zip(places, _as_list(own), strict=False):
            maps[place] = channels
        yield maps, list if is_sum or isinstance(index, Sequence) else lambda taken: taken[0]


def _check_convs(consumer: Consumer, offered: Sequence[int], source: str) -> None:
    """Refuse a module of which a convolution gets a map that it cannot take.

    Not every module tells the channels that it is built for, or all of them.
    """
    maps, misfits = _trial_maps(consumer.module, offered), []

    def look(name: str, conv: nn.Conv2d, x: torch.Tensor) -> None:
        if any(x is given for given in maps) and x.shape[1] != conv.in_channels:
            misfits.append(f'{name} is built for {conv.in_channels} channels and gets {x.shape[1]}')

    handles = [
        module.register_forward_pre_hook(lambda conv, args, name=name: look(name, conv, *args))
        for name, module in consumer.module.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        is_right = _runs_on(consumer.module, maps)
    finally:
        for handle in handles:
            handle.remove()
    if misfits and not is_right:
        raise ValueError(
            f'model.{consumer.name} does not fit: {source} maps with {list(offered)} channels, '
            f'but its {misfits[0]}. Set the channels that model.{consumer.name} takes in'
        )


def _trial_maps(module: nn.Module, channels: Sequence[int]) -> list[torch.Tensor]:
    values = (parameter for parameter in module.parameters() if not is_lazy(parameter))
    like = next(values, torch.zeros(()))
    sides = [max(TRIAL_SIDE >> i, 1) for i in range(len(channels))]
    return [like.new_zeros(1, c, s, s) for c, s in zip(channels, sides, strict=True)]


def _runs(module: nn.Module, channels: Sequence[int]) -> bool:
    """Whether a module runs in evaluation mode on maps of these channels."""
    return _runs_on(module, _trial_maps(module, channels))


def _runs_on(module: nn.Module, maps: Sequence[torch.Tensor]) -> bool:
    return _outputs_of(module, maps) is not None


def _outputs_of(module: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
    """What a module makes of maps in evaluation mode, None if it fails."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            return module(maps, **_more_inputs(module, maps))
    except Exception:
        # Code that meets a map that it is not made for may raise anything.
        return None
    finally:
        for part, mode in modes:
            part.training = mode


def _more_inputs(module: nn.Module, maps: Sequence[torch.Tensor]) -> dict[str, Any]:
    """What a module takes beside the maps.

    That is, for a head of a cascade such as OCRHead, the output of the head before it; and for a
    decoder of pixels such as MaskFormer's the sizes of the images.
    """
    taken = inspect.signature(module.forward).parameters
    inputs: dict[str, Any] = {}
    if 'prev_output' in taken:
        first = maps[_as_list(module.in_index)[0]]
        inputs['prev_output'] = first.new_zeros(1, module.num_classes, *first.shape[2:])
    if 'batch_img_metas' in taken:
        size = tuple(maps[0].shape[2:])
        inputs['batch_img_metas'] = [dict(batch_input_shape=size, img_shape=size, pad_shape=size)]
    return inputs


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


@HOOKS.register_module()
class ChannelCheckHook(Hook):
    """Stop a run before its first iteration if a neck or head does not fit the backbone.

    See :func:`check_channels`.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Check the model.

        Raises:
            ValueError: If its parts do not fit each other.
        """
        check_channels(bare_model(runner))
