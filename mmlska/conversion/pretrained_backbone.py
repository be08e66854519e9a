"""Weights for backbones of other libraries: all of them, whatever names timm gives, or an error."""

from collections.abc import Iterator, Mapping

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.model.weight_init import update_init_info
from mmengine.runner import CheckpointLoader
from torch import nn

from mmlska.checkpoint import CheckpointError, unwrap
from mmlska.checkpoint.naming import HEAD_KEY, without_wrappers
from mmlska.checkpoint.recognition import shape_of
from mmlska.checkpoint.resnet_naming import count_blocks, explain_resnet, is_of_timm, to_resnet
from mmlska.checkpoint.strict_loading import Comparison, compare, list_problems
from mmlska.registry import WEIGHT_INITIALIZERS

from .stem import STEM_OPTIONS, check_stem_option, convert_stem

PLUGIN_LISTS = tuple(f'after_conv{i}_plugin_names' for i in (1, 2, 3))


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone(PretrainedInit):
    """Start a backbone of another library from weights, completely or with an error.

    mmengine's 'Pretrained' takes what fits and goes on with random weights for the rest. This one
    also takes the names of timm's ResNets for mmdet's and mmseg's, and makes stems for other
    channels: ``convert=dict(in_channels='sum')``, see :func:`.stem.convert_stem`. Our own backbones
    need it for neither: there ``convert`` stands in an ``init_cfg`` of type 'Pretrained'.

    What may differ, each logged in one line: a classification head in the file, stages that the
    model does not build, and plugins of a ResNet of which the file has none.

    Args:
        checkpoint (str): As in mmengine's 'Pretrained'.
        convert (Mapping, optional): ``in_channels``, how to make a stem. Defaults to None.
        prefix (str, optional): As in mmengine's 'Pretrained'. Defaults to None.
        map_location (str): As in mmengine's 'Pretrained'. Defaults to 'cpu'.

    Raises:
        ValueError: If ``convert`` has another entry, or a way is unknown.
    """

    def __init__(
        self,
        checkpoint: str,
        convert: Mapping | None = None,
        prefix: str | None = None,
        map_location: str = 'cpu',
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)
        self.convert = convert or {}
        if not isinstance(self.convert, Mapping) or not set(self.convert) <= {'in_channels'}:
            raise ValueError(
                f'convert={convert!r} is not possible: it is a dict with in_channels, one of '
                f'{", ".join(STEM_OPTIONS)}'
            )
        if self.convert:
            check_stem_option(self.convert['in_channels'])

    def __call__(self, module: nn.Module) -> None:
        """Read, rename, convert and load.

        Raises:
            CheckpointError: If the weights do not fit. The message says how to build the backbone
                for them.
        """
        print_log(f'load model from: {self.checkpoint}', 'current')
        weights = unwrap(CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location))
        start = f'{self.prefix.removesuffix(".")}.' if self.prefix else ''
        bare = {without_wrappers(key): value for key, value in weights.items()}
        given = {key[len(start) :]: bare[key] for key in bare if key.startswith(start)}
        if is_of_timm(given):
            given = to_resnet(given)
        own = module.state_dict()
        if self.convert:
            given |= convert_other_stem(given, own, self.convert['in_channels'])
        load_whole(module, given, self.checkpoint)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'PretrainedBackbone: from {self.checkpoint}')


def convert_other_stem(given: Mapping, own: Mapping, how: str) -> dict[str, torch.Tensor]:
    """The stem of a backbone of any library: the one weight whose input channels alone differ."""
    differing = [
        key
        for key in own
        if key in given
        and shape_of(given[key]) != shape_of(own[key])
        and shape_of(given[key])[:1] + shape_of(given[key])[2:]
        == shape_of(own[key])[:1] + shape_of(own[key])[2:]
    ]
    if len(differing) != 1:
        return {}
    (key,) = differing
    return convert_stem(given, own[key].shape[1], how, key)


def load_whole(module: nn.Module, given: Mapping, source: str) -> None:
    """Load all weights of a backbone, or none.

    Raises:
        CheckpointError: If the weights do not fit.
    """
    own = module.state_dict()
    stages = {key.partition('.')[0] for key in own}
    heads = [key for key in given if key not in own and HEAD_KEY.fullmatch(key)]
    left = [key for key in given if key.startswith('layer') and key.partition('.')[0] not in stages]
    weights = {key: value for key, value in given.items() if key not in {*heads, *left}}
    comparison = compare(weights, own)
    plugins = tuple(f'{name}.' for name in plugin_names(module))
    added = [key for key in comparison.missing if key.startswith(plugins)]
    if not any(key.startswith(plugins) for key in weights):
        lacking = [key for key in comparison.missing if key not in added]
        comparison = comparison._replace(missing=lacking)
    if any(comparison):
        raise CheckpointError(explain(module, weights, comparison, source))
    module.load_state_dict(weights, strict=False)
    for what, keys in (
        ('the classification head of the checkpoint is left out', heads),
        ('weights of stages that are not built are left out', left),
        ('the checkpoint holds no plugins; they keep their initial weights', added),
    ):
        if keys:
            print_log(f'{what} ({len(keys)}, first {keys[0]})', 'current')
    loaded = len(own) - len(added)
    print_log(f'{type(module).__name__}: {loaded} of {len(own)} weights are loaded', 'current')


def plugin_names(module: nn.Module) -> Iterator[str]:
    """Names of all plugins of a ResNet of mmdet or mmseg."""
    for name, block in module.named_modules():
        for listed in PLUGIN_LISTS:
            for plugin in getattr(block, listed, ()):
                yield f'{name}.{plugin}'


def explain(module: nn.Module, weights: Mapping, comparison: Comparison, source: str) -> str:
    """Why weights do not fit, and how to build the backbone for them."""
    lines = [f'{type(module).__name__} loads none of the weights of {source!r}.']
    if count_blocks(module.state_dict()):
        lines.append(explain_resnet(weights))
    return '\n'.join([*lines, *list_problems(comparison)])
