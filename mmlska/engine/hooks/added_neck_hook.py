"""Weights of a detector with one neck in one with several."""

import re
from collections.abc import MutableMapping

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmlska.engine.bare_model import bare_model
from mmlska.registry import HOOKS

LONE_NECK = re.compile(r'^(module\.)?neck\.(?!\d+\.)')


def give_to_first_neck(model: nn.Module, weights: MutableMapping) -> None:
    """Name the weights of a lone neck as those of the first of several.

    Args:
        model (nn.Module): A detector or segmentor. One without a list of necks is passed over.
        weights (MutableMapping): Weights of a model with one neck, ``neck.*``, which become
            ``neck.0.*`` in place. Those of a model with several are left as they are.
    """
    lone = [key for key in weights if LONE_NECK.match(key)]
    if not lone or not isinstance(getattr(model, 'neck', None), nn.Sequential):
        return
    for key in lone:
        weights[LONE_NECK.sub(r'\1neck.0.', key)] = weights.pop(key)
    print_log('the checkpoint has one neck: the first of this model takes its weights', 'current')


@HOOKS.register_module()
class AddedNeckHook(Hook):
    """Let ``load_from`` take a detector that lacks the second neck of the config.

    The first neck of a list bears other names than a lone one. mmengine would leave its weights
    out, and the detector would train with a new pyramid under a trained backbone and head.
    """

    # Before the hooks that read the weights too, such as mmengine's EMAHook.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rename the weights before they reach the model, see :func:`give_to_first_neck`."""
        give_to_first_neck(bare_model(runner), checkpoint.get('state_dict', checkpoint))
