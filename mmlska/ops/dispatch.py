"""Which form of an operation runs."""

import difflib
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

import torch
from mmengine.logging import print_log

from .call_context import (
    constant_when_compiled,
    is_compiling,
    is_plain_tensor,
    is_transformed,
    needs_gradients,
)
from .depthwise_cascade import onednn
from .depthwise_cascade import reference as cascade_reference
from .depthwise_cascade import triton_op as cascade_triton_op
from .depthwise_gelu import reference as gelu_reference
from .depthwise_gelu import triton_op as gelu_triton_op
from .triton_support import triton_is_usable


class Operation(NamedTuple):
    """What can be computed in several forms.

    A form is a module with a function `run`. A fast form has two more: `can_run`, whether it
    computes a call as the plain form does, and `wins`, whether it is faster there.

    Attributes:
        name: What messages call it.
        plain: The plain form.
        fast: The fast forms, by the names of their backends. The first one that wins is taken.
    """

    name: str
    plain: ModuleType
    fast: dict[str, ModuleType]


FAST_FORMS: dict[str, ModuleType] = {'triton': cascade_triton_op, 'cpu': onednn}
CASCADE = Operation('depth-wise cascade', cascade_reference, FAST_FORMS)
CONV_GELU = Operation(
    'depth-wise convolution with GELU', gelu_reference, {'triton': gelu_triton_op}
)
BACKENDS = ('auto', 'plain', *FAST_FORMS)
ENVIRONMENT_VARIABLE = 'MMLSKA_OPS'

_chosen: ContextVar[str | None] = ContextVar('mmlska_ops_backend', default=None)


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
    whether gradients are needed. Under a tracer or a function transform it is always the plain one.
    Compilers and ``torch.export`` see the operator ``mmlska::depthwise_cascade`` on a GPU for which
    it has kernels, the plain form elsewhere, and keep that choice. :func:`use_backend` and the
    environment variable ``MMLSKA_OPS`` override the choice wherever the named form can run.

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
    # Compilers fold this line, so that they see little of the choice.
    choose = _form_for_compiler if is_compiling() else _form_for
    return choose(x, weights, biases, dilations).run(x, weights, biases, dilations)


def depthwise_gelu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Apply a 3x3 depth-wise convolution that keeps the size of the map, then GELU.

    GELU is the exact one, by the error function. The form is chosen as that of
    :func:`depthwise_cascade`; there is a fast one for GPUs.

    Args:
        x (Tensor): Map ``(N, C, H, W)``.
        weight (Tensor): Kernel ``(C, 1, 3, 3)``.
        bias (Tensor | None): Bias ``(C,)``, or None.

    Returns:
        Tensor: Map ``(N, C, H, W)`` in the memory layout of ``x``.
    """
    call = x, [weight], [bias], [1]
    if not may_fuse_gelu(x.device):
        return gelu_reference.run(*call)
    choose = _form_for_compiler if is_compiling() else _form_for
    return choose(*call, CONV_GELU).run(*call)


def may_fuse_gelu(device: torch.device) -> bool:
    """Whether :func:`depthwise_gelu` has a fast form for a device, so that asking may pay."""
    return triton_is_usable(device)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the form of the operations of this package inside a ``with`` block, in this thread.

    What activation checkpointing recomputes in the backward pass must be in the same block.

    Args:
        name (str): 'auto' takes the fastest, 'plain' PyTorch's own convolutions, and any other name
            of ``BACKENDS`` that form wherever it can run, fast or not.

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
    token = _chosen.set(_check_name(name, 'the name given to use_backend()'))
    try:
        yield
    finally:
        _chosen.reset(token)


@constant_when_compiled
def chosen_backend() -> str:
    """The name that :func:`use_backend`, else the environment, gives; 'auto' by default.

    Raises:
        ValueError: If the environment names no backend.
    """
    name = _chosen.get() or os.environ.get(ENVIRONMENT_VARIABLE) or 'auto'
    return _check_name(name, ENVIRONMENT_VARIABLE)


def _form_for_compiler(x, weights, biases, dilations, operation=CASCADE) -> ModuleType:
    """The form by what a compiler knows: sizes of maps may be symbols."""
    name = chosen_backend()
    form = operation.fast['triton']
    wanted = name == 'triton' or (name == 'auto' and x.device.type == 'cuda')
    return form if wanted and form.can_run(x, weights, biases, dilations) else operation.plain


def _form_for(x, weights, biases, dilations, operation=CASCADE) -> ModuleType:
    name = chosen_backend()
    if name == 'plain' or not is_plain_tensor(x):
        return operation.plain
    call = x, weights, biases, dilations
    training = needs_gradients(x, *weights, *biases)
    # What excludes most calls stands first: on small maps the choice itself takes time.
    for candidate, form in operation.fast.items():
        is_wanted = name == candidate or (
            name == 'auto' and form.wins(x, weights, dilations, training)
        )
        if is_wanted and _are_seen_by_nobody(weights, biases) and form.can_run(*call):
            _tell(operation.name, candidate, x.device, x.dtype, x.shape, training)
            return form
    _tell(operation.name, 'plain', x.device, x.dtype, x.shape, training)
    return operation.plain


def _are_seen_by_nobody(weights, biases) -> bool:
    """Whether a call is no more than that: without tracers, transforms and special tensors."""
    parameters = [*weights, *(bias for bias in biases if bias is not None)]
    return not is_transformed() and all(map(is_plain_tensor, parameters))


def _check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        nearest = difflib.get_close_matches(str(name), BACKENDS, 1)
        hint = f' (did you mean {nearest[0]!r}?)' if nearest else ''
        raise ValueError(
            f'{source} is {name!r}, but must be one of {", ".join(map(repr, BACKENDS))}{hint}'
        )
    return name


@functools.lru_cache(maxsize=256)
def _tell(
    operation: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: torch.Size,
    training: bool,
) -> None:
    print_log(
        f'{operation} by the {name!r} form: {device}, {dtype}, map {tuple(shape)}, '
        f'{"training" if training else "inference"}',
        'current',
        logging.DEBUG,
    )
