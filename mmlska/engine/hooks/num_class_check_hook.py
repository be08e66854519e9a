"""Classes of a data set against those that the heads of a model are built for."""

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmlska.engine.bare_model import bare_model, config_path
from mmlska.registry import HOOKS

# Parts of a model whose num_classes is that of the data set. The head of an RPN knows one class.
HEADS = {'bbox_head', 'mask_head', 'mask_iou_head', 'decode_head', 'auxiliary_head', 'head'}
# Heads that make labels of their own: of the borders between regions, and of objects whatever they
# are, which is all that a detector that is an RPN alone learns.
OWN_LABELS = {'STDCHead', 'RPNHead', 'GARPNHead'}
# Parts that count things and stuff, which together are the classes of the data set. Beside them
# heads of other names may know the things alone.
PANOPTIC_HEADS = {'panoptic_head', 'semantic_head', 'panoptic_fusion_head'}
PANOPTIC_COUNTS = ('num_things_classes', 'num_stuff_classes')
# Parts of models whose heads count otherwise: they take names as text.
OTHER_COUNTS = ('language_model', 'text_encoder')


def check_num_classes(model: nn.Module, dataset: Any) -> None:
    """Compare ``num_classes`` of every head with the classes of a data set.

    In panoptic models, of which instance segmentation by queries is a case, things and stuff are
    counted together. What cannot be decided passes: data sets without names of classes, models that
    take the names as text, heads that know no class of objects, and heads of mmseg with one output,
    which stands for two classes or for a depth.

    Args:
        model (nn.Module): A detector, segmentor or classifier.
        dataset: A data set with ``metainfo``.

    Raises:
        TypeError: If ``classes`` of the data set is a string.
        ValueError: If a head is built for another number of classes. The message names the options
            and their value.
    """
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes is None:
        return
    name = type(dataset).__name__
    if isinstance(classes, str):
        raise TypeError(
            f'the classes of {name} are the string {classes!r}: a tuple of one name has a comma, '
            f'metainfo=dict(classes=({classes!r},))'
        )
    wrong = {option: n for option, n in _class_counts(model) if n != len(classes)}
    if wrong:
        some = ', '.join(map(str, classes[:3])) + ', ...' * (len(classes) > 3)
        raise ValueError(
            f'{name} has {len(classes)} classes ({some}), but '
            + ', '.join(f'{option}={n}' for option, n in wrong.items())
            + '. Set '
            + ', '.join(f'{option}={len(classes)}' for option in wrong)
        )


def _class_counts(model: nn.Module) -> Iterator[tuple[str, int]]:
    """The config option of every head, or the sum of two, and its number of classes."""
    if any(hasattr(part, name) for part in model.modules() for name in OTHER_COUNTS):
        return
    is_panoptic = any(hasattr(part, 'panoptic_fusion_head') for part in model.modules())
    for name, module in model.named_modules():
        parts = [part for part in name.split('.') if not part.isdigit()]
        last, path = parts[-1] if parts else '', f'model.{config_path(name)}'
        count = getattr(module, 'num_classes', None)
        counts = [getattr(module, option, None) for option in PANOPTIC_COUNTS]
        if last in PANOPTIC_HEADS and all(isinstance(number, int) for number in counts):
            yield ' + '.join(f'{path}.{option}' for option in PANOPTIC_COUNTS), sum(counts)
        is_head = last in HEADS and isinstance(count, int) and not is_panoptic
        if is_head and not _counts_otherwise(module, last, count):
            yield f'{path}.num_classes', count


def _counts_otherwise(head: nn.Module, name: str, count: int) -> bool:
    is_binary = count == 1 and name in ('decode_head', 'auxiliary_head')
    is_agnostic = bool(getattr(head, 'class_agnostic', False))
    has_own_labels = any(kind.__name__ in OWN_LABELS for kind in type(head).__mro__)
    return is_binary or is_agnostic or has_own_labels


@HOOKS.register_module()
class NumClassCheckHook(Hook):
    """Stop a run before its first iteration if a head is built for another number of classes.

    A detector with too many classes would train, and fail at its first evaluation; one with too few
    would learn the last classes as background. See :func:`check_num_classes`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the data set of the training.

        Raises:
            TypeError: If its classes are a string.
            ValueError: If a head does not fit it.
        """
        check_num_classes(bare_model(runner), runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """The same for the validation."""
        check_num_classes(bare_model(runner), runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """The same for the test."""
        check_num_classes(bare_model(runner), runner.test_dataloader.dataset)
