"""What keeps kernels written in Triton from running on a device or a call.

Importing this module imports no Triton. Forms that have such kernels import them when they first
run, after :func:`triton_is_usable` has said yes.
"""

import functools
import importlib
import os
import sys
from collections.abc import Sequence

import torch

from . import measured
from .argument_checks import why_apart
from .call_context import autocast_dtype, constant_when_compiled, is_autocast

OLDEST_TORCH = (2, 7)  # the first that brings a Triton which compiles the kernels
OLDEST_TRITON = (3, 3)  # before, an empty tuple is no value inside a kernel
OLDEST_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@constant_when_compiled
def triton_is_usable(device: torch.device) -> bool:
    """Whether kernels in Triton run on this device.

    That is an NVIDIA GPU from Ampere on, and the CPU where ``TRITON_INTERPRET=1`` makes Triton
    interpret its kernels: slow, but the same arithmetic, for tests.
    """
    return not why_no_triton(device)


def why_not(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> str:
    """What keeps kernels from a map ``(N, C, H, W)`` and its parameters; '' if nothing does."""
    reason = _why_no_triton_remembered(x.device)
    if reason:
        return reason
    parameter_dtypes = DTYPES if is_autocast(x.device.type) else (x.dtype,)
    return why_apart(x, weights, biases, DTYPES, parameter_dtypes)


def dtype_in_use(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a map on a GPU is computed: under autocast that of its convolutions."""
    if x.device.type != 'cuda' or x.dtype == torch.float64 or not is_autocast('cuda'):
        return x.dtype
    return autocast_dtype('cuda')


@constant_when_compiled
def why_slower(
    operation: str,
    device: torch.device,
    elements: int | None,
    training: bool,
    dtype: torch.dtype,
) -> str:
    """Why kernels are not measured to be faster on a device; '' if they are.

    Args:
        operation (str): Name of the operation, see :class:`mmlska.ops.Choice`.
        device (torch.device): Device of the map.
        elements (int | None): Elements of the map. None if a compiler asks, to which a size may be
            a symbol, and for which one graph is to serve maps of all sizes.
        training (bool): Whether autograd records the call.
        dtype (torch.dtype): Dtype in which the map is computed, see :func:`dtype_in_use`.
    """
    if device.type != 'cuda':
        return 'the map is not on a GPU'
    name = measured.name_of(dtype)
    key = measured.Key(measured.gpu(device), operation, training, dtype=name)
    return measured.why_slower(key, sys.maxsize if elements is None else elements)


@constant_when_compiled
def _why_no_triton_remembered(device: torch.device) -> str:
    return why_no_triton(device)


def why_no_triton(device: torch.device) -> str:
    """What keeps kernels in Triton from running on a device, '' if nothing does."""
    if device.type == 'cpu':
        interpreted = os.environ.get('TRITON_INTERPRET') == '1'
        return _why_not_installed() if interpreted else 'it is a CPU'
    if device.type != 'cuda' or torch.version.hip:
        return 'it is not an NVIDIA GPU'
    return _why_no_gpu(device.index) or _why_not_installed()


@functools.cache
def _why_not_installed() -> str:
    if _release(torch.__version__) < OLDEST_TORCH:
        return f'PyTorch is {torch.__version__}, 2.7 or newer is needed'
    try:
        triton = importlib.import_module('triton')
    except Exception as error:
        # A broken Triton raises anything, and the reference form needs none of it.
        return f'Triton cannot be imported ({type(error).__name__})'
    if _release(triton.__version__) < OLDEST_TRITON:
        return f'Triton is {triton.__version__}, 3.3 or newer is needed'
    return ''


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split('.')[:2])


@functools.cache
def _why_no_gpu(index: int | None) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return 'its compute capability is {}.{}, 8.0 or newer is needed'.format(*capability)
    return ''
