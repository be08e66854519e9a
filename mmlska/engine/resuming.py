"""Whether a checkpoint is of the training that is to go on from it: of its model, its optimizer.

mmengine loads what fits and goes on: another model would train with new parts at the rate of an old
schedule, or stop in the optimizer with a message that names no weight.
"""

from collections.abc import Iterator, Mapping, Sequence

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer

from mmlska.checkpoint.naming import without_wrappers
from mmlska.checkpoint.strict_loading import compare

from .weights import counted, loaded_whole


def check_same_model(model: nn.Module, weights: Mapping, path: str) -> None:
    """Refuse to resume a training of another model.

    Backbones of ours are passed over: they load whole or not at all, and say how to mend it.
    Buffers are too: no optimizer has a state of them.

    Args:
        model: The model of the config, without wrappers.
        weights: Weights of the checkpoint, under the names of the model.
        path: Where they come from, for messages.

    Raises:
        ValueError: If they lack parameters of the model, or have them in another shape. The message
            names them.
    """
    apart = loaded_whole(model)
    own = {n: p for n, p in model.named_parameters() if not n.startswith(apart)}
    given = {without_wrappers(key): value for key, value in weights.items()}
    comparison = compare({key: given[key] for key in own if key in given}, own)
    problems = {'lacks': comparison.missing, 'has in another shape': comparison.misshaped}
    found = ', and '.join(f'{what} {counted(keys)}' for what, keys in problems.items() if keys)
    if found:
        raise ValueError(
            f'--resume {path}: the checkpoint is of another model than the config builds. It '
            f'{found}. Build the model that was trained, or start a new training from '
            f'what fits: leave --resume out and add --cfg-options load_from={path}'
        )


def check_same_optimizer(optim_wrapper: object, saved: Mapping, path: str) -> None:
    """Refuse to resume with an optimizer that cannot take the state of the saved one.

    Args:
        optim_wrapper: That of the config; what is none of mmengine's passes.
        saved: What its ``state_dict`` returned in the training before.
        path: Where it comes from, for messages.

    Raises:
        ValueError: If the saved one has other parameters, or other settings.
    """
    for optimizer, state in _pairs(optim_wrapper, saved):
        groups = state.get('param_groups', ()) if isinstance(state, Mapping) else ()
        difference = _difference(optimizer, groups)
        if difference:
            raise ValueError(
                f'--resume {path}: its optimizer {difference}. Give the config the model and the '
                'optim_wrapper (optimizer, paramwise_cfg) of that training, or start a new one '
                f'from its weights: leave --resume out and add --cfg-options load_from={path}'
            )


def _pairs(optim_wrapper: object, saved: Mapping) -> Iterator[tuple[Optimizer, Mapping]]:
    if isinstance(optim_wrapper, OptimWrapperDict):
        for name, one in optim_wrapper.items():
            yield from _pairs(one, saved.get(name, {}))
    elif isinstance(optim_wrapper, OptimWrapper):
        yield optim_wrapper.optimizer, saved


def _difference(optimizer: Optimizer, groups: Sequence[Mapping]) -> str:
    """How saved groups of parameters differ from those of an optimizer, empty if they fit."""
    before = [len(group['params']) for group in groups]
    now = [len(group['params']) for group in optimizer.param_groups]
    if before != now:
        return (
            f'has {sum(before)} parameters in {len(before)} groups, that of the config {sum(now)} '
            f'in {len(now)}'
        )
    # Switches are filled in by PyTorch, which has got more of them over the years.
    numbers = [k for k, v in optimizer.defaults.items() if type(v) in (int, float, tuple)]
    lacking = [k for k in numbers if not all(k in group for group in groups)]
    name = type(optimizer).__name__
    return f'has no {", ".join(lacking)}, as {name} of the config does' if lacking else ''
