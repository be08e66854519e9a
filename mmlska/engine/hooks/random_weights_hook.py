"""A backbone that nothing gave weights."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.checkpoint import WholeLoading
from mmlska.checkpoint.naming import without_wrappers
from mmlska.checkpoint.strict_loading import check_prefixes
from mmlska.engine.bare_model import bare_model
from mmlska.engine.weights import (
    check_init_cfg,
    check_values,
    offer_to_backbone,
    offer_to_model,
)
from mmlska.registry import HOOKS


@HOOKS.register_module()
class RandomWeightsHook(Hook):
    """Warn of a backbone that neither ``init_cfg`` nor ``load_from`` nor ``--resume`` gave weights.

    Recipes for fine-tuning reach far less from random weights, and nothing else shows it.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Check what the backbone is to start from, before mmengine reads it.

        Raises:
            CheckpointError: If ``init_cfg`` names a prefix that the file does not have.
        """
        check_prefixes(getattr(bare_model(runner), 'backbone', None))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the values that the model is to take, those of a bare backbone too.

        Raises:
            CheckpointError: If a value cannot be copied.
        """
        model, weights = bare_model(runner), checkpoint.get('state_dict', checkpoint)
        offer_to_model(model, weights)
        offer_to_backbone(model, weights)
        check_values(model, {without_wrappers(key): value for key, value in weights.items()})

    def before_train(self, runner: Runner) -> None:
        """Check what the backbone starts from, before the first iteration.

        Raises:
            CheckpointError: If the ``init_cfg`` of a backbone of another library has left it at its
                random start, in whole or in part; see :func:`check_init_cfg`.
        """
        backbone = getattr(bare_model(runner), 'backbone', None)
        if backbone is not None and not isinstance(backbone, WholeLoading):
            check_init_cfg(backbone)
        if isinstance(backbone, WholeLoading) and not backbone.has_loaded_weights:
            runner.logger.warning(
                f'{type(backbone).__name__} trains from random weights: no init_cfg and no '
                'load_from names a checkpoint. To start from a file, add --cfg-options '
                'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH'
            )
