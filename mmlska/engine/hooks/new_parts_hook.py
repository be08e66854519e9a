"""What a model has beyond the checkpoint that it starts from."""

from collections.abc import Iterable, Iterator, Mapping

from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmlska.checkpoint.naming import without_wrappers
from mmlska.checkpoint.strict_loading import compare
from mmlska.engine.bare_model import bare_model
from mmlska.engine.weights import loaded_whole
from mmlska.registry import HOOKS

SHOWN = 4


def compare_parts(model: nn.Module, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What a model has beyond the weights of a checkpoint.

    Backbones of ours are passed over: they load whole or not at all, and tell of it themselves.

    Args:
        model (nn.Module): A model.
        names (Iterable[str]): Names of the checkpoint's weights.

    Returns:
        tuple[list[str], list[str]]: The outermost modules of which the checkpoint holds nothing;
        and the weights that it lacks in modules of which it holds others.
    """
    held = {without_wrappers(name) for name in names}
    known = {module for name in held for module in modules_around(name)}
    apart = loaded_whole(model)
    new, lacking = {}, []
    for name in model.state_dict():
        if name in held or name.endswith('.num_batches_tracked') or name.startswith(apart):
            continue
        part = next((module for module in modules_around(name) if module not in known), None)
        if part is None:
            lacking.append(name)
        else:
            new[part] = True
    return list(new), lacking


def reshaped_weights(model: nn.Module, weights: Mapping) -> list[str]:
    """Weights of a model that have another shape in a checkpoint, with both shapes.

    Backbones of ours are passed over, as in :func:`compare_parts`.
    """
    apart = loaded_whole(model)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(apart)}
    given = {without_wrappers(key): value for key, value in weights.items()}
    return compare(given, own).misshaped


def modules_around(name: str) -> Iterator[str]:
    """Names of the modules that a weight lies in, the outermost first.

    >>> list(modules_around('neck.1.weight'))
    ['neck', 'neck.1']
    """
    for end, letter in enumerate(name):
        if letter == '.':
            yield name[:end]


@HOOKS.register_module()
class NewPartsHook(Hook):
    """Say in one line which parts of the model ``load_from`` gives no weights.

    Layers that were added to a trained network are meant to be new. A weight that is missing beside
    others of its module is not: a warning names it. Another names all weights of another shape, as
    those of another number of classes have: mmengine prints them, but its log has not one.
    """

    # Where the weights bear the names of the model; it stands behind the hooks that rename them.
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names and shapes of the weights with those of the model."""
        model, weights = bare_model(runner), checkpoint.get('state_dict', checkpoint)
        new, lacking = compare_parts(model, weights)
        if new:
            runner.logger.info(f'new beside the checkpoint, at their start: {listed(new)}')
        if lacking:
            runner.logger.warning(
                f'the checkpoint lacks weights of modules that it holds in part: {listed(lacking)}'
            )
        if isinstance(runner, FlexibleRunner):
            # What a strategy has divided among processes has other shapes.
            return
        if reshaped := reshaped_weights(model, weights):
            runner.logger.warning(
                'of another shape in the checkpoint, hence at their start: '
                f'{len(reshaped)} ({", ".join(reshaped)})'
            )


def listed(names: list[str]) -> str:
    """How many there are, and the first of them."""
    return f'{len(names)} ({", ".join(names[:SHOWN])}{", ..." * (len(names) > SHOWN)})'
