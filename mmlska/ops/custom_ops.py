"""Operations by kernels that no compiler can look into: what every one of them needs around them.

Eager calls run the kernels as they are, or record them for autograd. Compilers see an operator of
the namespace ``mmlska``: its schema, the kernels themselves, fake ones that give shapes, layouts
and dtypes, and what autograd and autocast do with it. Eager calls do without it, for passing an
operator takes longer than a small map. PyTorch before 2.4 cannot register all of that, and runs no
kernels.

``torch.library.triton_op`` would spare the fake kernels, for it lets compilers see each launch. But
compilers take no interpreted kernels, so that nothing of it could be tested without a GPU; into how
many segments and tiles a map is cut would be computed with symbols in graphs for maps of all sizes;
and autograd and autocast would have to be registered all the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .call_context import (
    autocast_dtype,
    is_autocast,
    is_compiling,
    layout_of,
    needs_gradients,
)

EXIST = hasattr(torch.library, 'register_autograd')
_LIBRARY = torch.library.Library('mmlska', 'FRAGMENT')
_DEVICES = {'cpu': 'CPU', 'cuda': 'CUDA'}
# Lists in an operator hold no None, or autograd overlooks the rest of them: flags tell which of the
# tensors are present.
_CALL = 'Tensor[] given, bool[] present, int[] settings'

Tensors = Sequence[torch.Tensor | None]
Settings = Sequence[int]
Needed = Sequence[bool]
Found = list[torch.Tensor | None]
Compute = Callable[[Tensors, Settings], tuple[torch.Tensor, torch.Tensor | None]]


class KernelOperation:
    """An operation that kernels compute, from tensors and at least one integer.

    The first tensor is a map ``(N, C, H, W)``, which autocast casts as it does for convolutions;
    the others are parameters, each of which may be absent.

    Args:
        name (str): Name of the operator; that of its gradient ends in ``_backward``.
        forward (Callable): ``(tensors, settings)`` to the result and a tensor that is kept for the
            backward pass, or None.
        backward (Callable): ``(grad, kept, tensors, settings, needed)`` to a gradient for each of
            the tensors, None where the flag in ``needed`` says that none is.
        fake (Callable): ``forward`` without values.
        reference_backward (Callable): ``(grad, tensors, settings, needed)`` to the same gradients
            with a graph of their own.
    """

    def __init__(
        self,
        name: str,
        forward: Compute,
        backward: Callable[..., Found],
        fake: Compute,
        reference_backward: Callable[[torch.Tensor, Tensors, Settings, Needed], Found],
    ) -> None:
        self.name = name
        self.forward, self.backward = forward, backward
        self.reference_backward = reference_backward
        if EXIST:
            schema = f'({_CALL}) -> (Tensor, Tensor)'
            self._define(name, schema, _always_kept(forward), _always_kept(fake))
            self._define(
                f'{name}_backward',
                f'(Tensor grad, Tensor kept, {_CALL}, bool[] needed) -> Tensor[]',
                self._compute_gradients,
                _imagine_gradients,
            )
            torch.library.register_autograd(
                f'mmlska::{name}', self._differentiate, setup_context=_save, lib=_LIBRARY
            )
            for device_type, key in _DEVICES.items():
                _LIBRARY.impl(name, self._casting(device_type), f'Autocast{key}')

    def __call__(self, tensors: Tensors, settings: Settings) -> torch.Tensor:
        """Compute the operation, and let autograd record it."""
        x, *parameters = tensors
        if is_autocast(x.device.type):
            x = as_autocast(x, x.device.type)
        if is_compiling():
            return self._operator(*_pack(x, *parameters), list(settings))[0]
        if needs_gradients(x, *parameters):
            return _Recorded.apply(self, settings, x, *parameters)
        return self.forward((x, *parameters), settings)[0]

    def run_with_gradients(self, grad: torch.Tensor, tensors: Tensors, settings: Settings) -> Found:
        """The result, and all gradients for that of the result, without PyTorch's autograd.

        Its threads may be waiting for the caller.
        """
        out, kept = self.forward(tensors, settings)
        needed = [tensor is not None for tensor in tensors]
        return [out, *self.backward(grad, kept, tensors, settings, needed)]

    @property
    def _operator(self) -> Callable:
        return getattr(torch.ops.mmlska, self.name)

    def _define(self, name: str, schema: str, kernel: Callable, fake: Callable) -> None:
        _LIBRARY.define(name + schema)
        for key in _DEVICES.values():
            _LIBRARY.impl(name, kernel, key)
        torch.library.register_fake(f'mmlska::{name}', fake, lib=_LIBRARY)

    def _compute_gradients(
        self,
        grad: torch.Tensor,
        kept: torch.Tensor,
        given: Sequence[torch.Tensor],
        present: Needed,
        settings: Settings,
        needed: Needed,
    ) -> list[torch.Tensor]:
        """The kernel of the gradient: those gradients that are needed.

        What an operator returns shares no memory, unlike the sums for the parameters.
        """
        flags = _spread(needed, present, False)
        found = self.backward(grad, kept, _spread(given, present), settings, flags)
        own = [value for value in found[1:] if value is not None]
        own = [value.clone(memory_format=layout_of(value)) for value in own]
        return [value for value in found[:1] if value is not None] + own

    def _differentiate(
        self, ctx: Any, grad: torch.Tensor | None, _: None
    ) -> tuple[list[torch.Tensor | None], None, None]:
        """Gradients of the arguments of the operator."""
        kept, *given = ctx.saved_tensors
        present, settings = ctx.settings
        if grad is None:
            return [None] * len(given), None, None
        needed = list(ctx.needs_input_grad[0])
        if torch.is_grad_enabled():
            call = _spread(given, present), settings, _spread(needed, present, False)
            found = [value for value in self.reference_backward(grad, *call) if value is not None]
        else:
            differentiate = getattr(torch.ops.mmlska, f'{self.name}_backward')
            found = differentiate(grad, kept, given, present, settings, needed)
        return _spread(found, needed), None, None

    def _casting(self, device_type: str) -> Callable[..., torch.Tensor]:
        """The kernel of the operator for autocast."""
        key = getattr(torch._C.DispatchKey, f'Autocast{_DEVICES[device_type]}')
        keys = torch._C.DispatchKeySet(key)

        def run(given: Sequence[torch.Tensor], *arguments: object) -> torch.Tensor:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return self._operator([as_autocast(given[0], device_type), *given[1:]], *arguments)

        return run


class _Recorded(torch.autograd.Function):
    """What eager calls record."""

    @staticmethod
    def forward(
        ctx: Any, operation: KernelOperation, settings: Settings, *tensors: torch.Tensor | None
    ) -> torch.Tensor:
        out, kept = operation.forward(tensors, settings)
        ctx.operation, ctx.settings = operation, settings
        ctx.save_for_backward(kept, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            found = ctx.operation.reference_backward(grad, tensors, ctx.settings, needed)
        else:
            found = ctx.operation.backward(grad, kept, tensors, ctx.settings, needed)
        return None, None, *found


def as_autocast(x: torch.Tensor, device_type: str) -> torch.Tensor:
    """A map in the dtype that autocast, where it is on, gives the maps of a convolution."""
    return x if x.dtype == torch.float64 else x.to(autocast_dtype(device_type))


def dense(tensors: Tensors) -> Found:
    """Parameters that are contiguous."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _pack(*tensors: torch.Tensor | None) -> tuple[list[torch.Tensor], list[bool]]:
    """Those of the tensors that are present, and which are."""
    given = [tensor for tensor in tensors if tensor is not None]
    return given, [tensor is not None for tensor in tensors]


def _spread(items: Sequence[Any], present: Needed, missing: Any = None) -> list[Any]:
    """Undo :func:`_pack`."""
    rest = iter(items)
    return [next(rest) if flag else missing for flag in present]


def _always_kept(compute: Compute) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The kernel of an operator: where nothing is kept for the backward pass, an empty tensor."""

    def run(
        given: Sequence[torch.Tensor], present: Needed, settings: Settings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, kept = compute(_spread(given, present), settings)
        return out, given[0].new_empty(0) if kept is None else kept

    return run


def _imagine_gradients(
    grad: torch.Tensor,
    kept: torch.Tensor,
    given: Sequence[torch.Tensor],
    present: Needed,
    settings: Settings,
    needed: Needed,
) -> list[torch.Tensor]:
    """Those gradients of maps ``(N, C, H, W)`` and parameters that are needed, without values."""
    leaves = [leaf for leaf, flag in zip(given, needed, strict=True) if flag]
    return [torch.empty_like(leaf, memory_format=layout_of(leaf)) for leaf in leaves]


def _save(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Keep for the backward pass of an operator what it needs."""
    given, *ctx.settings = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *given)
