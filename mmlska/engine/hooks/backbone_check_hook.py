from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from mmlska.checkpoint import WholeLoading
from mmlska.registry import HOOKS

from .plugin_check import check_plugins


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
class BackboneCheckHook(Hook):
    """Say in time what a run would otherwise show late, or never.

    A backbone that does not fit its neck, or never runs one of its plugins, stops the run before
    the first iteration. A backbone that neither ``init_cfg`` nor ``load_from`` nor ``--resume``
    gave weights is told in one warning: recipes for fine-tuning reach far less from random weights,
    and nothing else shows it.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Check the model, see :func:`check_channels` and :func:`check_plugins`.

        Raises:
            ValueError: If backbone and neck do not fit, or a plugin would never run.
        """
        model = _unwrapped(runner.model)
        check_channels(model)
        check_plugins(model)

    def before_train(self, runner) -> None:
        """Warn of random weights."""
        backbone = getattr(_unwrapped(runner.model), 'backbone', None)
        if isinstance(backbone, WholeLoading) and not backbone.has_loaded_weights:
            runner.logger.warning(
                f'{type(backbone).__name__} trains from random weights: no init_cfg and no '
                'load_from names a checkpoint. To start from a file, add --cfg-options '
                'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH'
            )


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
