from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from mmlska.registry import HOOKS


def check_channels(model: nn.Module) -> None:
    """Compare the channels that a backbone hands out with those that its consumer expects.

    The consumer is the neck (the first of several), or the decode head where there is no neck.
    Backbones that do not tell their ``out_channels`` are passed over.

    Args:
        model (nn.Module): A detector or segmentor.

    Raises:
        ValueError: If they differ. The message names the config option and its right value.
    """
    backbone = getattr(model, 'backbone', None)
    offered = getattr(backbone, 'out_channels', None)
    if not isinstance(offered, tuple):
        return
    neck = getattr(model, 'neck', None)
    if neck is not None:
        first = neck[0] if isinstance(neck, nn.Sequential) else neck
        option, expected = 'model.neck.in_channels', getattr(first, 'in_channels', None)
    else:
        head = getattr(model, 'decode_head', None)
        option, expected = 'model.decode_head.in_channels', getattr(head, 'in_channels', None)
        offered = _select(offered, getattr(head, 'in_index', None))
    if expected is not None and _as_list(expected) != _as_list(offered):
        raise ValueError(
            f'{option}={expected} does not fit the backbone: {type(backbone).__name__} hands out '
            f'maps with {_as_list(offered)} channels. Set {option}={_as_list(offered)}'
        )


def _as_list(channels) -> list[int]:
    return [channels] if isinstance(channels, int) else list(channels)


def _select(channels: tuple[int, ...], index) -> tuple[int, ...] | int:
    if index is None:
        return channels
    return channels[index] if isinstance(index, int) else tuple(channels[i] for i in index)


@HOOKS.register_module()
class ChannelCheckHook(Hook):
    """Stop before the first iteration where backbone and neck do not fit, see `check_channels`."""

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Check the runner's model.

        Raises:
            ValueError: If backbone and neck do not fit.
        """
        model = runner.model
        check_channels(model.module if is_model_wrapper(model) else model)
