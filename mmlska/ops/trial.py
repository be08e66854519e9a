"""Whether the kernels in Triton work on a device: they are tried there once, then relied on or not.

Triton compiles a kernel, and a launcher in C, when the kernel first runs. That takes a C compiler,
the headers of Python, a folder to write to and a driver that fits. Where one is missing, or numbers
come out wrong, a run is to be slower, not to end. An access that ends the CUDA context of the
process is beyond this.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from .call_context import constant_when_compiled
from .depthwise_cascade import reference as cascade_reference
from .depthwise_cascade import triton_op as cascade_triton_op
from .depthwise_gelu import reference as gelu_reference
from .depthwise_gelu import triton_op as gelu_triton_op
from .residual import reference as residual_reference
from .residual import triton_op as residual_triton_op

logger = logging.getLogger('mmlska')

MAP = (2, 16, 5, 7)
CHANNELS = MAP[1:2]
Tensors = Sequence[torch.Tensor]


class Case(NamedTuple):
    """An operation that is tried.

    Attributes:
        name: Its name, as in :class:`mmlska.ops.Choice`.
        run: Maps the gradient of the result and the tensors to the result and all gradients, by
            kernels and without PyTorch's autograd. A gradient that there is none of is None.
        reference: Maps the tensors to the result, by PyTorch's own operations.
        shapes: Shapes of the tensors, the first one being the map.
    """

    name: str
    run: Callable[[torch.Tensor, Tensors], Sequence[torch.Tensor | None]]
    reference: Callable[[Tensors], torch.Tensor]
    shapes: Sequence[Sequence[int]]


# The cascade is LSKA's: it has all parts that a march may have.
DILATIONS = (1, 1, 2, 2)
CASES = (
    Case(
        'depthwise_cascade',
        lambda grad, tensors: cascade_triton_op.OPERATION.run_with_gradients(
            grad, tensors, DILATIONS
        ),
        lambda t: cascade_reference.run(t[0], t[1:5], t[5:], DILATIONS),
        (MAP, *((16, 1, *kernel) for kernel in ((1, 3), (3, 1)) * 2), *[CHANNELS] * 4),
    ),
    Case(
        'depthwise_gelu',
        lambda grad, tensors: gelu_triton_op.OPERATION.run_with_gradients(grad, tensors, (1,)),
        lambda t: gelu_reference.run(t[0], t[1:2], t[2:], (1,)),
        (MAP, (16, 1, 3, 3), CHANNELS, CHANNELS),
    ),
    Case(
        'add_scaled',
        lambda grad, tensors: residual_triton_op.run_with_gradients(grad, *tensors),
        lambda t: residual_reference.run(*t),
        (MAP, MAP, CHANNELS, (2, 1, 1, 1)),
    ),
)
# Of the largest value of a tensor. Rounding in float32 makes about 1e-6 of it.
LARGEST_ERROR = 1e-4

_outcomes: dict[torch.device, str] = {}


@constant_when_compiled
def why_failed(device: torch.device) -> str:
    """What went wrong when the kernels were tried on a device; '' if nothing did.

    The first call for a device tries them and logs a failure; the others remember. While a CUDA
    graph is captured nothing can be tried.

    Args:
        device (torch.device): One that :func:`.triton_support.why_no_triton` finds no fault with.
    """
    outcome = _outcomes.get(device)
    if outcome is None:
        if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
            return 'a CUDA graph is captured, and the kernels were not tried before'
        outcome = _outcomes[device] = _try(device)
    return outcome


def _try(device: torch.device) -> str:
    """Run every case; '' if all is well, else what is not, which is logged."""
    try:
        # Nothing that may surround the call reaches into a new thread: autocast, inference mode,
        # modes that see operations, hooks for saved tensors.
        with ThreadPoolExecutor(1) as thread:
            reason = thread.submit(_why_different, device).result()
    except Exception as error:
        # Triton, the C compiler, the file system and the driver raise what they like, and the
        # reference form needs none of them.
        reason = _in_one_line(error)
        logger.debug('the kernels in Triton fail on %s', device, exc_info=True)
    if reason:
        logger.warning(
            "the kernels in Triton do not work on %s, PyTorch's own operations take their place: "
            '%s',
            device,
            reason,
        )
    return reason


def _in_one_line(error: Exception) -> str:
    """Type and text. A compiler tells first where it is and last what is wrong."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text if len(text) <= 500 else f'{text[:200]} [...] {text[-300:]}'


def _why_different(device: torch.device) -> str:
    """Which case does not compute what PyTorch does on the CPU; '' if all do."""
    for case in CASES:
        grad = _waves(MAP, 1)
        tensors = [_waves(shape, 2 + i) for i, shape in enumerate(case.shapes)]
        expected = _run_reference(case.reference, grad, tensors)
        found = case.run(grad.to(device), [tensor.to(device) for tensor in tensors])
        for value, truth in zip(found, expected, strict=True):
            if value is None:
                continue
            error = ((value.cpu() - truth).abs().max() / truth.abs().max()).item()
            # Written so that it catches NaN.
            if not error <= LARGEST_ERROR:
                return f'{case.name} is off by {error:.1e} of the largest value'
    return ''


def _waves(shape: Sequence[int], frequency: int) -> torch.Tensor:
    """Values without a pattern, in channels_last where that is one, without the random generator.

    What a program draws at random is not to depend on whether kernels are tried.
    """
    count = torch.Size(shape).numel()
    values = torch.arange(count, dtype=torch.float64, device='cpu').mul(1.7 * frequency).cos()
    values = values.float().reshape(shape)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def _run_reference(
    run: Callable[[Tensors], torch.Tensor], grad: torch.Tensor, tensors: Tensors
) -> list[torch.Tensor]:
    """The result and the gradients of all tensors, on the CPU."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = run(leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]
