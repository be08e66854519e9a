"""All processes of a job choose forms of operations by the same table."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlska.ops import measured
from mmlska.ops.describe import describe_table
from mmlska.registry import HOOKS

Sizes = Mapping[tuple, int | None]


def sizes_in_force(device: torch.device) -> dict[tuple, int | None]:
    """From which size of map on each form is taken, by operation, kernels and dtype.

    Args:
        device: Where the model is. What runs on the CPU beside a GPU, loaders and metrics, has no
            such operations.
    """
    rows = measured.rows_in_force(measured.processor_of(device))
    return {tuple(key[1:]): row.least for key, row in rows.items()}


def find_difference(tables: Sequence[Sizes]) -> str:
    """Which processes have another table than the first one, and where; '' if none has.

    Args:
        tables: The table of each rank, see :func:`sizes_in_force`.
    """
    first = tables[0]
    other = [rank for rank, table in enumerate(tables) if table != first]
    if not other:
        return ''
    table = tables[other[0]]
    key = next(key for key in [*first, *table] if first.get(key, '') != table.get(key, ''))
    operation, training, case, dtype = key
    what = f'{operation}, {case}, ' if case else f'{operation}, '
    return (
        f'rank {", ".join(map(str, other))} of {len(tables)} would choose other forms of the large '
        f'kernels than rank 0: {what}{"training" if training else "inference"}, {dtype} from '
        f'{first.get(key, "no")} elements on by rank 0, from {table.get(key, "no")} by rank '
        f'{other[0]}. Give all processes the same file by MMLSKA_TUNED=FILE, or none by '
        'MMLSKA_TUNED=off; `python -m mmlska tune` writes one for each kind of machine'
    )


@HOOKS.register_module()
class MeasuredTableHook(Hook):
    """Say which table chooses forms, and stop a job whose processes have different ones.

    Such processes would wait for each other, and their sums would be rounded differently.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Compare the tables of all processes.

        Raises:
            RuntimeError: If they differ, in every process. The message names ranks and remedy.
        """
        device = next((p.device for p in runner.model.parameters()), torch.device('cpu'))
        if device.type not in ('cpu', 'cuda'):
            return
        table = describe_table(measured.processor_of(device))
        runner.logger.info(f'forms of the large kernels are chosen {table}')
        if get_dist_info()[1] == 1:
            return
        if difference := find_difference(all_gather_object(sizes_in_force(device))):
            raise RuntimeError(difference)
