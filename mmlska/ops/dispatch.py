"""Which form of an operation runs: the one place that chooses, remembers, and can tell."""

import difflib
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .call_context import (
    PLAIN_TENSORS,
    constant_when_compiled,
    is_autocast,
    is_compiling,
    is_exporting,
    layout_of,
    needs_gradients,
    why_observed,
    why_special,
)
from .depthwise_cascade import onednn
from .depthwise_cascade import reference as cascade_reference
from .depthwise_cascade import triton_op as cascade_triton_op
from .depthwise_gelu import reference as gelu_reference
from .depthwise_gelu import triton_op as gelu_triton_op
from .form import FastForm, Form, Signature
from .measured import smallest
from .trial import why_failed
from .triton_support import dtype_in_use, triton_is_usable, why_slower

logger = logging.getLogger('mmlska')

Tensors = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class Operation:
    """What can be computed in several forms.

    Attributes:
        name: The function of this module that computes it.
        reference: The reference form, which backend 'plain' takes.
        fast: The fast forms, by the names of their backends. The first one that is faster is taken.
    """

    name: str
    reference: Form
    fast: Mapping[str, FastForm]

    def form(self, backend: str) -> Form:
        """The form that a backend stands for."""
        return self.reference if backend == 'plain' else self.fast[backend]


CASCADE = Operation(
    'depthwise_cascade', cascade_reference, {'triton': cascade_triton_op, 'cpu': onednn}
)
CONV_GELU = Operation('depthwise_gelu', gelu_reference, {'triton': gelu_triton_op})
BACKENDS = ('auto', 'plain', *CASCADE.fast)
ENVIRONMENT_VARIABLE = 'MMLSKA_OPS'


class Choice(NamedTuple):
    """What was chosen for one call, see :func:`record_choices`.

    Attributes:
        operation: 'large_kernel_attention', 'depthwise_cascade', 'depthwise_gelu', 'add_scaled',
            'in_fast_layout' or 'in_bands'.
        form: The backend whose form ran, 'plain' for the reference; of 'add_scaled' also
            'one_pass', in inference; of 'in_fast_layout' 'channels_last' or 'unchanged', of
            'in_bands' 'bands' or 'whole'.
        shape: Shape of the map.
        dtype: Its dtype.
        layout: Its layout, 'channels_last' or 'contiguous'.
        reason: Why no fast form ran; '' if one did.
    """

    operation: str
    form: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    reason: str


# Form and reason of each kind of call that was met, see :func:`_key_of`.
Plan = tuple[str, str]
_plans: dict[tuple, Plan] = {}
MOST_PLANS = 4096
_backend: ContextVar[str | None] = ContextVar('mmlska_ops_backend', default=None)
_recorders: ContextVar[tuple[list[Choice], ...]] = ContextVar('mmlska_ops_recorders', default=())


def depthwise_cascade(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    dilations: Sequence[int],
) -> torch.Tensor:
    """Apply depth-wise convolutions one after the other, each of which keeps the size of the map.

    Each one pads with zeros and then adds its bias; the stride is 1. Gradients, also of gradients,
    flow into the map, the weights and the biases.

    Which form computes it is chosen from the call: device, dtype, layout, shape, kernels, and
    whether gradients are needed. Under a tracer or a function transform it is always the reference.
    Compilers see the operator ``mmlska::depthwise_cascade`` on a GPU where its kernels are chosen,
    the reference elsewhere, and keep that choice. Exported programs, those for ONNX among them,
    hold PyTorch's operators alone, so that they run without this package. :func:`use_backend` and
    the environment variable ``MMLSKA_OPS`` override the choice wherever the named form can run;
    where it cannot, a warning says why, and the reference runs. :func:`record_choices` tells it.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)`` of odd sizes, in the order in which
            they are applied.
        biases (Sequence[Tensor | None]): Bias ``(C,)`` of each, or None.
        dilations (Sequence[int]): Dilation of each, along both axes.

    Returns:
        Tensor: Map ``(N, C, H, W)`` in the memory layout of ``x``.

    Raises:
        ValueError: If ``MMLSKA_OPS`` names no backend. The message names all.
    """
    return choose(CASCADE, x, weights, biases, dilations).run(x, weights, biases, dilations)


def depthwise_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a 3x3 depth-wise convolution that keeps the size of the map, then GELU.

    GELU is the exact one, by the error function. The form is chosen as that of
    :func:`depthwise_cascade`; there is a fast one for GPUs.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        weight (Tensor): Kernel ``(C, 1, 3, 3)``.
        bias (Tensor | None): Bias ``(C,)``, or None.
        shift (Tensor, optional): What is added to the map before it is convolved, ``(C,)``: the
            bias of the convolution that made it. The padding stays zero. Defaults to None: nothing.

    Returns:
        Tensor: Map ``(N, C, H, W)`` in the memory layout of ``x``.
    """
    call = x, [weight], [bias, shift], [1]
    if not triton_is_usable(x.device):
        return gelu_reference.run(*call)
    return choose(CONV_GELU, *call).run(*call)


def may_fuse_gelu(x: torch.Tensor) -> bool:
    """Whether :func:`depthwise_gelu` may run in a fast form, so that asking it may pay.

    Only then is it worth while to leave the bias of what makes its map to it.

    Args:
        x (Tensor): A map on the device in question.
    """
    if not triton_is_usable(x.device) or is_exporting():
        return False
    if not is_compiling() and why_observed(x):
        return False
    backend = chosen_backend()
    if backend != 'auto':
        return backend == 'triton'
    training = torch.is_grad_enabled()
    return not why_slower(CONV_GELU.name, x.device, None, training, dtype_in_use(x))


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the form of the operations of this package inside a ``with`` block, in this thread.

    What activation checkpointing recomputes in the backward pass must be in the same block.

    Args:
        name (str): 'auto' takes the fastest form, 'plain' the reference, PyTorch's own
            convolutions, and any other name of ``BACKENDS`` that form wherever it can run, fast or
            not. Where it cannot, the reference runs, and a warning says why, once for each reason.

    Raises:
        ValueError: If no backend bears the name. The message names all, and the nearest.

    Example:
        >>> from mmlska.ops import depthwise_cascade, use_backend
        >>> x, row = torch.ones(1, 1, 2, 3), torch.ones(1, 1, 1, 3)
        >>> with use_backend('plain'):
        ...     depthwise_cascade(x, [row], [None], [1])
        tensor([[[[2., 3., 2.],
                  [2., 3., 2.]]]])
    """
    token = _backend.set(_check_name(name, 'the name given to use_backend()'))
    try:
        yield
    finally:
        _backend.reset(token)


@constant_when_compiled
def chosen_backend() -> str:
    """The name that :func:`use_backend`, else the environment, gives; 'auto' by default.

    Raises:
        ValueError: If the environment names no backend.
    """
    name = _backend.get() or os.environ.get(ENVIRONMENT_VARIABLE) or 'auto'
    return name if name in BACKENDS else _check_name(name, ENVIRONMENT_VARIABLE)


@contextmanager
def record_choices() -> Iterator[list[Choice]]:
    """Collect what is chosen for each eager call inside a ``with`` block, in this thread.

    Compiled and exported graphs hold the choice that was made for them, and record nothing.

    Yields:
        list[Choice]: One entry a call, in the order of the calls: forms of operations, layouts of
        maps, and whether chains of convolutions run by bands.

    Example:
        >>> from mmlska.ops import depthwise_cascade, record_choices
        >>> x, row = torch.ones(1, 1, 2, 3), torch.ones(1, 1, 1, 3)
        >>> with record_choices() as choices:
        ...     out = depthwise_cascade(x, [row], [None], [1])
        >>> choices[0].form, choices[0].reason
        ('plain', 'the map has less than 32768 elements')
    """
    choices: list[Choice] = []
    token = _recorders.set((*_recorders.get(), choices))
    try:
        yield choices
    finally:
        _recorders.reset(token)


def record(operation: str, form: str, x: torch.Tensor, reason: str) -> None:
    """Note a choice for whoever records, see :class:`Choice`."""
    recorders = _recorders.get()
    if recorders:
        is_last = not why_observed(x) and layout_of(x) == torch.channels_last
        layout = 'channels_last' if is_last else 'contiguous'
        choice = Choice(operation, form, tuple(x.shape), x.dtype, layout, reason)
        for choices in recorders:
            choices.append(choice)


def choose(
    operation: Operation,
    x: torch.Tensor,
    weights: Tensors,
    biases: Biases,
    dilations: Sequence[int],
) -> Form:
    """The form that is to compute a call.

    Args:
        operation (Operation): What is computed.
        x (Tensor): Map ``(N, C, H, W)``.
        weights (Sequence[Tensor]): Kernels ``(C, 1, kh, kw)``.
        biases (Sequence[Tensor | None]): Bias ``(C,)`` of each, or None.
        dilations (Sequence[int]): Dilation of each.
    """
    # Compilers fold this line, so that they see little of the choice.
    if is_compiling():
        return _choose_for_compiler(operation, x, weights, biases, dilations)
    form, reason = _choose_eagerly(operation, x, weights, biases, dilations)
    if _recorders.get():
        record(operation.name, form, x, reason)
    return operation.form(form)


def _choose_eagerly(
    operation: Operation,
    x: torch.Tensor,
    weights: Tensors,
    biases: Biases,
    dilations: Sequence[int],
) -> Plan:
    """The backend whose form runs, and why no fast form does, '' if one does."""
    backend = chosen_backend()
    if backend == 'plain':
        return 'plain', "the backend is 'plain'"
    # Before the map is asked for anything: what stands in for it may not answer.
    reason = why_observed(x)
    call = x, weights, biases, dilations
    if reason and backend == 'auto':
        return 'plain', reason
    if reason:
        return _take_forced(operation, backend, reason, call)
    # What excludes most calls stands first: on small maps the choice itself takes time.
    if backend == 'auto' and x.numel() < smallest():
        return 'plain', f'the map has less than {smallest()} elements'
    key = _key_of(operation, backend, *call)
    plan = _plans.get(key)
    if plan is None:
        if backend == 'auto':
            plan = _take_fastest(operation, call)
        else:
            plan = _take_forced(operation, backend, '', call)
        # What was not tried because a graph is captured may be tried later.
        if key and not _is_captured(x):
            if len(_plans) >= MOST_PLANS:
                _plans.clear()
            _plans[key] = plan
    return plan


def _key_of(
    operation: Operation,
    backend: str,
    x: torch.Tensor,
    weights: Tensors,
    biases: Biases,
    dilations: Sequence[int],
) -> tuple | None:
    """All that decides which form takes an eager call; None where a parameter is no plain tensor.

    What forms ask of tensors is here, see ``FastForm.why_not``; values decide nothing.
    """
    parameters = []
    for p in (*weights, *biases):
        if p is not None and type(p) not in PLAIN_TENSORS:
            return None
        parameters.append(None if p is None else (p.shape, p.dtype, p.device))
    return (
        operation,
        backend,
        needs_gradients(x, *weights, *biases),
        is_autocast(x.device.type) and dtype_in_use(x),
        torch._C._get_mkldnn_enabled(),
        x.device,
        x.dtype,
        x.shape,
        x.stride(),
        tuple(dilations),
        len(weights),
        *parameters,
    )


def _is_captured(x: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured of what is done with a map."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def forget_plans() -> None:
    """Choose anew for every call, as if none had been chosen for."""
    _plans.clear()
    _warn_once.cache_clear()


def _take_fastest(
    operation: Operation, call: tuple[torch.Tensor, Tensors, Biases, Sequence[int]]
) -> Plan:
    """The first form that is faster than the reference, and that nothing keeps from running."""
    x, weights, biases, dilations = call
    if any(weight.dim() != 4 for weight in weights):
        return 'plain', 'a kernel is not of shape (C, 1, kh, kw)'
    signature = Signature(
        x.device,
        dtype_in_use(x),
        x.shape,
        layout_of(x),
        tuple(tuple(weight.shape[2:]) for weight in weights),
        tuple(dilations),
        needs_gradients(x, *weights, *biases),
    )
    faster, reason = faster_forms(operation, signature)
    for candidate in faster:
        reason = why_special(*weights, *biases) or _why_not(operation, candidate, *call)
        if not reason:
            return candidate, ''
    return 'plain', reason


def _take_forced(
    operation: Operation,
    backend: str,
    reason: str,
    call: tuple[torch.Tensor, Tensors, Biases, Sequence[int]],
) -> Plan:
    """The form of a backend that the user chose, if nothing keeps it from running."""
    if backend not in operation.fast:
        reason = 'there is no such form of it'
    reason = reason or why_special(*call[1], *call[2]) or _why_not(operation, backend, *call)
    if reason:
        _warn_of(backend, operation.name, reason)
        return 'plain', reason
    return backend, ''


def _why_not(
    operation: Operation,
    backend: str,
    x: torch.Tensor,
    weights: Tensors,
    biases: Biases,
    dilations: Sequence[int],
) -> str:
    """What keeps a fast form from a call: the call itself, or kernels that fail on the device."""
    reason = operation.fast[backend].why_not(x, weights, biases, dilations)
    return reason or (why_failed(x.device) if backend == 'triton' else '')


def faster_forms(operation: Operation, call: Signature) -> tuple[tuple[str, ...], str]:
    """The backends whose forms are faster than the reference, best first, and why others are not.

    Args:
        operation (Operation): What is computed.
        call (Signature): What decides it.
    """
    reasons = {name: form.why_slower(call) for name, form in operation.fast.items()}
    faster = tuple(name for name, reason in reasons.items() if not reason)
    text = '; '.join(f'{name}: {reason}' for name, reason in reasons.items() if reason)
    logger.debug('%s of %s: %s (%s)', operation.name, call, faster or 'plain', text)
    return faster, text


def _choose_for_compiler(
    operation: Operation,
    x: torch.Tensor,
    weights: Tensors,
    biases: Biases,
    dilations: Sequence[int],
) -> Form:
    """The form by what a compiler knows: sizes of maps may be symbols."""
    backend = chosen_backend()
    if backend not in ('auto', 'triton'):
        return operation.reference
    training = needs_gradients(x, *weights, *biases)
    call = operation.name, x.device, None, training, dtype_in_use(x)
    if backend == 'auto' and why_slower(*call):
        return operation.reference
    if is_exporting():
        reason = "an exported program holds PyTorch's operators alone"
    else:
        reason = _why_not(operation, 'triton', x, weights, biases, dilations)
    if reason and backend == 'triton':
        _warn_of(backend, operation.name, reason)
    return operation.reference if reason else operation.fast['triton']


@constant_when_compiled
def _warn_of(backend: str, operation: str, reason: str) -> bool:
    """Say why a backend that the user chose does not compute a call; once for each reason."""
    return _warn_once(backend, operation, reason)


@functools.lru_cache(maxsize=256)
def _warn_once(backend: str, operation: str, reason: str) -> bool:
    """The same; compilers look into nothing that remembers."""
    logger.warning(
        "%s: the backend %r was chosen by use_backend() or %s, but cannot run: %s. PyTorch's own "
        'operations compute it instead',
        operation,
        backend,
        ENVIRONMENT_VARIABLE,
        reason,
    )
    return True


def _check_name(name: str, source: str) -> str:
    """The name of a backend, or an error that names all and the nearest."""
    if name not in BACKENDS:
        nearest = difflib.get_close_matches(str(name), BACKENDS, 1)
        hint = f' (did you mean {nearest[0]!r}?)' if nearest else ''
        raise ValueError(
            f'{source} is {name!r}, but must be one of {", ".join(map(repr, BACKENDS))}{hint}'
        )
    return name
