"""Which form of the operations this machine takes, in words."""

import platform

import torch

from . import triton_support
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
    return f'{where}: kernels in Triton; small maps by PyTorch'


def _describe_cpu() -> str:
    if platform.machine() in ('x86_64', 'AMD64') and torch.backends.mkldnn.is_available():
        return 'on the CPU: rearranged for oneDNN in float32, else as PyTorch does'
    return 'on the CPU: as PyTorch does'
