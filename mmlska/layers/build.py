"""The one place that builds norms, activations and attention layers from configs.

Norms and activations bear the names and defaults of ``mmcv.cnn``, without a need for mmcv.
"""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from mmlska.registry import MODELS, find_model

from .layer_norm import LayerNorm2d

NORMS = {
    'BN': nn.BatchNorm2d,
    'BN1d': nn.BatchNorm1d,
    'BN2d': nn.BatchNorm2d,
    'BN3d': nn.BatchNorm3d,
    'SyncBN': nn.SyncBatchNorm,
    'GN': nn.GroupNorm,
    'LN': LayerNorm2d,
    'IN': nn.InstanceNorm2d,
    'IN1d': nn.InstanceNorm1d,
    'IN2d': nn.InstanceNorm2d,
    'IN3d': nn.InstanceNorm3d,
}
ACTIVATIONS = {
    kind.__name__: kind
    for kind in (
        nn.ELU,
        nn.GELU,
        nn.LeakyReLU,
        nn.PReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.RReLU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Tanh,
    )
}


class ConfigError(ValueError, TypeError):
    """A config that is no dict with a type, or has options that the type does not take."""


def build_norm(cfg: Mapping, channels: int) -> nn.Module:
    """Build a norm of maps as mmcv's ``build_norm_layer`` does, but for the axis of a LayerNorm.

    Args:
        cfg (Mapping): ``type`` is a name in :data:`NORMS`, a class, or a name of a norm in the
            registries of OpenMMLab; the other entries are its options. ``eps`` is 1e-5 if it is not
            given; ``requires_grad=False`` freezes the parameters; GN needs ``num_groups``. LN acts
            over the channels of a map.
        channels (int): Channels of the map.

    Returns:
        nn.Module: A norm that maps ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Raises:
        ConfigError: If ``cfg`` is no dict with a ``type``, or has an option that the norm does not
            take.
        KeyError: If nobody knows the type.
    """
    kind, options = _resolve('norm', cfg, NORMS, "dict(type='BN')")
    kind = LayerNorm2d if kind is nn.LayerNorm else kind
    requires_grad = options.pop('requires_grad', True)
    if _takes(kind, 'eps'):
        options.setdefault('eps', 1e-5)
    if kind is nn.GroupNorm:
        if 'num_groups' not in options:
            raise ConfigError(f"GN needs num_groups, as in dict(type='GN', num_groups=8): {cfg!r}")
        norm = _call(kind, dict(options, num_channels=channels))
    else:
        norm = _call(kind, options, channels)
    for parameter in norm.parameters():
        parameter.requires_grad = requires_grad
    return norm


def build_activation(cfg: Mapping) -> nn.Module:
    """Build an activation as mmcv's ``build_activation_layer`` does.

    Args:
        cfg (Mapping): ``type`` is a name in :data:`ACTIVATIONS`, a class, or a name of an
            activation in the registries of OpenMMLab; the other entries are its options.

    Returns:
        nn.Module: The activation, for tensors of any shape.

    Raises:
        ConfigError: If ``cfg`` is no dict with a ``type``, or has an option that the activation
            does not take.
        KeyError: If nobody knows the type.
    """
    kind, options = _resolve('activation', cfg, ACTIVATIONS, "dict(type='GELU')")
    return _call(kind, options)


def build_layer(cfg: Mapping, in_channels: int) -> nn.Module:
    """Build an attention layer named in a config, whatever the current default scope is.

    Args:
        cfg (Mapping): ``type`` is a registered name (``'LSKA'``, ``'mmlska.LSKA'``, a layer of
            another library) or a class; the other entries are its options.
        in_channels (int): Channels of the map that the layer works on.

    Returns:
        nn.Module: A layer that maps ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Raises:
        ConfigError: If ``cfg`` is no dict with a ``type``, or has an option that the layer does not
            take.
        KeyError: If nobody knows the type.
    """
    kind, options = _resolve('layer', cfg, {}, "dict(type='LSKA', kernel_size=23)")
    return _call(kind, dict(options, in_channels=in_channels))


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


def _resolve(
    what: str, cfg: Mapping, known: Mapping[str, type], example: str
) -> tuple[Callable, dict]:
    """The class that a config names, and a copy of its options."""
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        article = 'an' if what[0] in 'aeiou' else 'a'
        raise ConfigError(
            f"{article} {what} is configured by a dict with a 'type', "
            f'for example {example}, but got {cfg!r}'
        )
    options = copy.deepcopy(dict(cfg))
    name = options.pop('type')
    if callable(name):
        return name, options
    kind = known.get(name) or find_model(name)
    if kind is None:
        names = sorted(known or MODELS.module_dict)
        raise KeyError(
            f'{name!r} is no {what} that mmlska or a registry knows{_nearest(name, names)}; '
            f'mmlska itself has: {", ".join(names)}'
        )
    return kind, options


def _call(kind: Callable, options: dict, *args: int) -> nn.Module:
    """Build from options, having refused those that the class does not take."""
    unknown = [name for name in options if not _takes(kind, name)]
    if unknown:
        taken = inspect.signature(kind).parameters
        name = getattr(kind, '__name__', repr(kind))
        raise ConfigError(
            f'{name} takes no {unknown[0]}={options[unknown[0]]!r}'
            f'{_nearest(unknown[0], taken)}; it takes {", ".join(taken)}. If the option came with '
            f'a config that this one inherits from and that names another type, drop it with '
            f"dict(_delete_=True, type='{name}')"
        )
    return kind(*args, **options)


def _takes(kind: Callable, option: str) -> bool:
    """Whether a class takes an option by this name."""
    parameters = inspect.signature(kind).parameters
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return is_open or option in parameters


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    nearest = get_close_matches(name.lower(), by_lower, n=1)
    return f' (the nearest is {by_lower[nearest[0]]!r})' if nearest else ''
