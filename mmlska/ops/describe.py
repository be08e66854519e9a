"""Which form of the operations this machine takes, in words."""

import platform

import torch

from . import triton_support
from .dispatch import ENVIRONMENT_VARIABLE, chosen_backend


def describe_forms() -> str:
    """How large maps are computed here, and why not on the GPU by Triton where that is so.

    Raises:
        ValueError: If ``MMLSKA_OPS`` names no backend.
    """
    name = chosen_backend()
    if name != 'auto':
        return f'{name!r} wherever it can run, as {ENVIRONMENT_VARIABLE} says'
    if not torch.cuda.is_available():
        return f'on the CPU: {_describe_cpu()}; no GPU for the kernels in Triton'
    device = torch.device('cuda', torch.cuda.current_device())
    reason = triton_support.why_no_triton(device)
    where = f'on the GPU ({torch.cuda.get_device_name(device)})'
    if reason:
        return f"{where}: PyTorch's own; no kernels in Triton, because {reason}"
    return f'{where}: kernels in Triton; small maps by PyTorch'


def _describe_cpu() -> str:
    if platform.machine() in ('x86_64', 'AMD64') and torch.backends.mkldnn.is_available():
        return 'rearranged for oneDNN in float32, else as PyTorch does'
    return 'as PyTorch does'
