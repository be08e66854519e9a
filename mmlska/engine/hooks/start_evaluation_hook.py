"""Figures of a model before it is trained."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.registry import HOOKS


@HOOKS.register_module()
class StartEvaluationHook(Hook):
    """Evaluate before the first iteration: what the weights are worth that training starts from.

    The figures are logged at step 0, as those of any evaluation. No random number of the training
    changes. A run that is resumed has them already.
    """

    # After the hooks that prepare for evaluations, such as mmengine's CheckpointHook.
    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        """Evaluate, unless iterations were trained before.

        Raises:
            ValueError: If the config has no evaluation.
        """
        if runner.iter > 0:
            return
        if runner.val_loop is None:
            raise ValueError(
                'StartEvaluationHook evaluates before the first iteration, but the config has no '
                'evaluation: set val_dataloader, val_cfg and val_evaluator, or leave the hook out'
            )
        with torch.random.fork_rng():
            runner.val_loop.run()
