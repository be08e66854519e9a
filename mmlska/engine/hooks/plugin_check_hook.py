"""Plugins that a backbone builds and never runs."""

from types import SimpleNamespace

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmlska.engine.bare_model import bare_model
from mmlska.registry import HOOKS


def check_plugins(model: nn.Module) -> None:
    """Find plugins that a backbone has built and never runs.

    MMSegmentation's ResNet runs only the last of the plugins at one position, and says nothing.

    Args:
        model (nn.Module): A detector, segmentor or backbone.

    Raises:
        ValueError: If there are such plugins. The message names them and the remedy.
    """
    for name, block in model.named_modules():
        for attribute, plugins in vars(block).items():
            if attribute.endswith('_plugin_names') and len(plugins) > 1 and not _runs_all(block):
                lost, last = ', '.join(plugins[:-1]), plugins[-1]
                owner = f'{type(block).__module__.split(".")[0]}.{type(block).__name__}'
                raise ValueError(
                    f'the plugin {lost} of {name} never runs: {owner} runs only the last of the '
                    f'plugins at {attribute.removesuffix("_plugin_names")!r}, which is {last}. '
                    "Make them one: cfg=dict(type='mmlska.AttentionSequence', layers=[...])"
                )


def _runs_all(block: nn.Module) -> bool:
    """Whether a block hands the output of one plugin to the next, tried out on two counters."""
    counters = SimpleNamespace(one=lambda x: x + 1, two=lambda x: x + 1)
    return type(block).forward_plugin(counters, 0, ['one', 'two']) == 2


@HOOKS.register_module()
class PluginCheckHook(Hook):
    """Stop a run that would lose a plugin, see :func:`check_plugins`."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Check the model.

        Raises:
            ValueError: If a plugin would never run.
        """
        check_plugins(bare_model(runner))
