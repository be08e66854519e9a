"""Testing with the fused model."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from mmlska.deploy import fuse
from mmlska.registry import HOOKS


@HOOKS.register_module()
class FusingHook(Hook):
    """Test the fused model in place of the model, see :func:`mmlska.deploy.fuse`.

    It is for every runner of mmengine: ``custom_hooks=[dict(type='mmlska.FusingHook')]``. Fused is
    what the loaded checkpoint and the hooks before this one have made of the model. After the test
    the runner has the model itself again.
    """

    # After hooks that exchange the weights for a test, such as mmengine's EMAHook.
    priority = 'LOWEST'

    def before_test_epoch(self, runner) -> None:
        """Fuse the model. In a distributed job every process fuses its own, out of the wrapper."""
        self._unfused = model = runner.model
        while is_model_wrapper(model):
            model = model.module
        model.eval()
        runner.model = fuse(model)
        print_log('the fused model is tested', runner.logger)

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        """Give the runner its own model back."""
        runner.model = self._unfused
