"""Operators of the namespace ``mmlska``: what compilers call.

A kernel that they cannot look into becomes an operator: its schema, the kernel itself, a fake one
that gives shapes, layouts and dtypes, and what autograd and autocast do with it. PyTorch before 2.4
cannot register all of that, and runs without operators.
"""

from collections.abc import Callable, Sequence

import torch

from .call_context import autocast_dtype, layout_of

EXIST = hasattr(torch.library, 'register_autograd')
_LIBRARY = torch.library.Library('mmlska', 'FRAGMENT')
_DEVICES = {'cpu': 'CPU', 'cuda': 'CUDA'}


def define(name: str, schema: str, kernel: Callable, fake: Callable) -> None:
    """Define an operator ``mmlska::name``.

    Args:
        name (str): Its name.
        schema (str): Arguments and results, as ``(Tensor x) -> Tensor``.
        kernel (Callable): Computes it. No result may share memory with another or an argument.
        fake (Callable): The same without values.
    """
    _LIBRARY.define(name + schema)
    for key in _DEVICES.values():
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f'mmlska::{name}', fake, lib=_LIBRARY)


def differentiate(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give an operator its gradient, see ``torch.library.register_autograd``."""
    torch.library.register_autograd(
        f'mmlska::{name}', backward, setup_context=setup_context, lib=_LIBRARY
    )


def cast_first(name: str) -> None:
    """Let autocast cast the first argument of an operator, a map, to its dtype."""
    for device_type, key in _DEVICES.items():
        _LIBRARY.impl(name, _casting(name, device_type, f'Autocast{key}'), f'Autocast{key}')


def as_autocast(x: torch.Tensor, device_type: str) -> torch.Tensor:
    """A map in the dtype that autocast, where it is on, gives the maps of a convolution."""
    return x if x.dtype == torch.float64 else x.to(autocast_dtype(device_type))


def empty_gradients(
    leaves: Sequence[torch.Tensor | None], needed: Sequence[bool]
) -> list[torch.Tensor]:
    """Those gradients of maps ``(N, C, H, W)`` and parameters that are needed, without values."""
    leaves = [leaf for leaf, flag in zip(leaves, needed, strict=True) if flag]
    return [torch.empty_like(leaf, memory_format=layout_of(leaf)) for leaf in leaves]


def _casting(name: str, device_type: str, key: str) -> Callable[..., torch.Tensor]:
    """The kernel of an operator for a dispatch key of autocast."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def run(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.mmlska, name)(as_autocast(x, device_type), *arguments)

    return run
