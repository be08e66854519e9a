"""The check of the data for the stock training scripts."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.engine.data_check import check_content
from mmlska.registry import HOOKS


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check annotation files before the first iteration, see :func:`check_content`.

    ``default_hooks=dict(data_check=dict(type='mmlska.DataCheckHook'))`` turns it on in any config,
    ``default_hooks=dict(data_check=None)`` off.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the data of training and validation.

        Raises:
            ValueError: If there is an error in it.
        """
        check_content(runner.cfg, ('train', 'val'))
