"""Whether the kernels in Triton work on a device: they are tried there once, then relied on or not.

Triton compiles a kernel, and a launcher in C, when the kernel first runs. That takes a C compiler,
the headers of Python, a folder to write to and a driver that fits. Where one is missing, or numbers
come out wrong, a run is to be slower, not to end. An access that ends the CUDA context of the
process is beyond this.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .call_context import constant_when_compiled
from .depthwise_cascade import reference as cascade_reference
from .depthwise_cascade import triton_op as cascade_triton_op
from .depthwise_gelu import reference as gelu_reference
from .depthwise_gelu import triton_op as gelu_triton_op
from .form import Form

logger = logging.getLogger('mmlska')

# Name, fast form, reference form, heights and widths of the kernels, their dilations. The cascade
# is LSKA's: it has all parts that a march may have.
CASES = (
    (
        'depthwise_cascade',
        cascade_triton_op,
        cascade_reference,
        ((1, 3), (3, 1), (1, 3), (3, 1)),
        (1, 1, 2, 2),
    ),
    ('depthwise_gelu', gelu_triton_op, gelu_reference, ((3, 3),), (1,)),
)
SIZE = (1, 16, 5, 7)
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
    for name, form, reference, kernels, dilations in CASES:
        x, grad = _waves(SIZE, 1), _waves(SIZE, 2)
        weights = [_waves((SIZE[1], 1, *kernel), 3 + i) for i, kernel in enumerate(kernels)]
        biases = [_waves(SIZE[1:2], 7 + i) for i in range(len(kernels))]
        expected = _run_reference(reference, grad, x, weights, biases, dilations)
        found = form.run_with_gradients(
            grad.to(device),
            x.to(device),
            [weight.to(device) for weight in weights],
            [bias.to(device) for bias in biases],
            dilations,
        )
        for value, truth in zip(found, expected, strict=True):
            error = ((value.cpu() - truth).abs().max() / truth.abs().max()).item()
            # Written so that it catches NaN.
            if not error <= LARGEST_ERROR:
                return f'{name} is off by {error:.1e} of the largest value'
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
    reference: Form,
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    dilations: Sequence[int],
) -> list[torch.Tensor]:
    """The result and the gradients of the map, the weights and the biases, on the CPU."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights, *biases)]
    number = len(weights)
    out = reference.run(leaves[0], leaves[1 : 1 + number], leaves[1 + number :], dilations)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]
