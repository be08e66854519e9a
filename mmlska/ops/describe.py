"""Which form of the operations this machine takes, in words."""

import torch

from . import measured, triton_support
from .dispatch import ENVIRONMENT_VARIABLE, chosen_backend
from .trial import why_failed


def describe_forms() -> str:
    """How large maps are computed here, and why not on the GPU by Triton where that is so.

    On a GPU that tries the kernels in Triton, which compiles them the first time.

    Raises:
        ValueError: If ``MMLSKA_OPS`` names no backend.
    """
    name = chosen_backend()
    forced = f'{name!r} wherever it can run, as {ENVIRONMENT_VARIABLE} says'
    if name not in ('auto', 'triton'):
        return forced
    if not torch.cuda.is_available():
        nowhere = 'no GPU for the kernels in Triton'
        return f'{forced}; {nowhere}' if name == 'triton' else f'{_describe_cpu()}; {nowhere}'
    device = torch.device('cuda', torch.cuda.current_device())
    reason = triton_support.why_no_triton(device) or why_failed(device)
    where = f'on the GPU ({torch.cuda.get_device_name(device)})'
    if name == 'triton':
        return f'{forced}; not {where}, because {reason}' if reason else forced
    if reason:
        return f"{where}: PyTorch's own; no kernels in Triton, because {reason}"
    processor = measured.gpu(device)
    operations, table = measured.measured_operations(processor), describe_table(processor)
    if not operations:
        return (
            f"{where}: PyTorch's own; the kernels in Triton work, but were not measured to be "
            f'faster on {processor} ({table}): `python -m mmlska tune` measures them, '
            f'{ENVIRONMENT_VARIABLE}=triton takes them'
        )
    return (
        f'{where}: kernels in Triton for {", ".join(operations)}; small maps by PyTorch ({table})'
    )


def _describe_cpu() -> str:
    processor = measured.cpu()
    if not torch.backends.mkldnn.is_available():
        return 'on the CPU: as PyTorch does, which has no oneDNN here'
    faster = 'rearranged for oneDNN where that is faster'
    if not measured.measured_operations(processor):
        faster = 'as PyTorch does; nothing was measured to be faster'
    return f'on the CPU: {faster} on {processor} ({describe_table(processor)})'


def describe_table(processor: str) -> str:
    """Which table says what is faster on a processor of this machine."""
    own = measured.tuned_rows(processor).values()
    if not own:
        return 'by the shipped table'
    date, source = next((row.date, row.source) for row in own)
    return f'by the table that `python -m mmlska tune` wrote on {date}: {source}'
