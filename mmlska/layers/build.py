import copy
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from mmlska.registry import MODELS


def build_layer(cfg: dict, in_channels: int) -> nn.Module:
    """Build an attention layer named in a config, whatever the current default scope is.

    ``Registry.build`` would look in the *default scope's* registry, so ``dict(type='LSKA')`` would
    not be found inside an mmdet config. ``Registry.get`` looks among our own layers first and then
    in the parents.

    Args:
        cfg (dict): ``type`` is a registered name (``'LSKA'``, ``'mmlska.LSKA'``, a layer of another
            library) or a class; the other entries are its options.
        in_channels (int): Channels of the map that the layer works on.

    Returns:
        nn.Module: A layer that maps ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Raises:
        TypeError: If ``cfg`` is not a dict with a ``type``.
        KeyError: If no registry knows the type.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(
            f"a layer is configured by a dict with a 'type', "
            f"for example dict(type='LSKA', kernel_size=23), but got {cfg!r}"
        )
    options = copy.deepcopy(dict(cfg))
    layer_type = options.pop('type')
    layer_class = layer_type if callable(layer_type) else MODELS.get(layer_type)
    if layer_class is None:
        own = ', '.join(sorted(MODELS.module_dict))
        raise KeyError(f'{layer_type!r} is in no model registry; mmlska itself has: {own}')
    return layer_class(in_channels=in_channels, **options)


def build_plugins(cfgs: Sequence[dict], in_channels: int) -> nn.Sequential:
    """Build plugin layers that run one after the other, named as mmdet's ResNet names them.

    Args:
        cfgs (Sequence[dict]): Configs of the layers; ``postfix`` is appended to the name.
        in_channels (int): Channels of the map.

    Returns:
        nn.Sequential: The layers under the names ``_abbr_ + postfix``; empty without configs.

    Raises:
        ValueError: If two layers would bear the same name.
    """
    layers = OrderedDict()
    for cfg in cfgs:
        options = dict(cfg)
        postfix = options.pop('postfix', '')
        layer = build_layer(options, in_channels)
        name = f'{getattr(layer, "_abbr_", type(layer).__name__.lower())}{postfix}'
        if name in layers:
            raise ValueError(
                f'two plugins at one position are both named {name!r}; '
                "give one of them another 'postfix' in its cfg"
            )
        layers[name] = layer
    return nn.Sequential(layers)
