"""A backbone that nothing gave weights."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.checkpoint import WholeLoading
from mmlska.engine.bare_model import bare_model
from mmlska.registry import HOOKS


@HOOKS.register_module()
class RandomWeightsHook(Hook):
    """Warn of a backbone that neither ``init_cfg`` nor ``load_from`` nor ``--resume`` gave weights.

    Recipes for fine-tuning reach far less from random weights, and nothing else shows it.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Say so once."""
        backbone = getattr(bare_model(runner), 'backbone', None)
        if isinstance(backbone, WholeLoading) and not backbone.has_loaded_weights:
            runner.logger.warning(
                f'{type(backbone).__name__} trains from random weights: no init_cfg and no '
                'load_from names a checkpoint. To start from a file, add --cfg-options '
                'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH'
            )
