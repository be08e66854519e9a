"""A checkpoint for testing that holds every weight of the model."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.engine.bare_model import bare_model
from mmlska.engine.weights import load_all_weights
from mmlska.registry import HOOKS


@HOOKS.register_module()
class WholeWeightsHook(Hook):
    """Refuse a checkpoint that lacks weights of the model, see :func:`load_all_weights`.

    mmengine logs them and goes on; a test of random weights would look like one of a bad model.
    """

    # After the hooks that rename the weights of the checkpoint, or exchange them.
    priority = 'LOWEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the weights whole, before mmengine loads them in part.

        Raises:
            ValueError: If weights of the model are missing or have another shape.
        """
        weights = checkpoint.get('state_dict', checkpoint)
        load_all_weights(bare_model(runner), weights, str(runner.cfg.get('load_from')))
