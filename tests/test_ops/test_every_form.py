"""What every fast form of the cascade owes to the reference form: one law, a row for each form.

The kernels in Triton run on a GPU where there is one, else interpreted on the CPU, which is slow:
their maps are small.
"""

import pytest
import torch
from cascades import cast, make, relative_error, with_gradients
from torch.utils.checkpoint import checkpoint

from mmlska.ops import depthwise_cascade, triton_support, use_backend

pytestmark = pytest.mark.usefixtures('rounding_of_a_gpu')

GPU = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
DEVICES = {'cpu': torch.device('cpu'), 'triton': GPU}
WHY_NO_TRITON = triton_support.why_no_triton(GPU)
NCHW, NHWC = torch.contiguous_format, torch.channels_last
KINDS = ['LSKA', 'LKA', 'LSKATrivial', 'LKATrivial', 'one row', 'dilated rows']


def table(**rows):
    """Cases of a law, by backend; those of a form that cannot run here are skipped."""
    marks = {'cpu': (), 'triton': pytest.mark.skipif(bool(WHY_NO_TRITON), reason=WHY_NO_TRITON)}
    return [
        pytest.param(backend, *row, marks=marks[backend])
        for backend, cases in rows.items()
        for row in cases
    ]


def typical_error(found, exact):
    """Root of the mean square. The largest error of a few values is a matter of luck."""
    return (found.to(exact) - exact).square().mean().sqrt().item()


def largest_error(found, exact):
    return relative_error(found, exact)


@pytest.mark.parametrize(
    ('backend', 'dtype', 'kernel_size', 'size', 'error'),
    table(
        cpu=[
            (torch.bfloat16, k, size, largest_error)
            for k in (7, 23, 53)
            for size in ((25, 40), (13, 17))
        ],
        triton=[
            (dtype, k, (13, 17), typical_error)
            for dtype in (torch.bfloat16, torch.float16)
            for k in (7, 23)
        ],
    ),
)
def test_half_precision_is_as_exact_as_the_reference(backend, dtype, kernel_size, size, error):
    call = cast(dtype, *make('LSKA', kernel_size, channels=16, size=size))
    truth = with_gradients('plain', *cast(torch.float64, *call))
    plain = with_gradients('plain', *cast(DEVICES[backend], *call))
    found = with_gradients(backend, *cast(DEVICES[backend], *call))
    for value, reference, exact in zip(found, plain, truth, strict=True):
        assert value.dtype == dtype
        assert error(value, exact) <= 1.5 * error(reference, exact)


@pytest.mark.parametrize(
    ('backend', 'absent', 'kernel_size', 'size'),
    table(
        cpu=[((1, 3), 23, (11, 10))],
        triton=[(absent, 7, (6, 7)) for absent in ((0,), (1,), (2,), (3,), (0, 1, 2, 3), (1, 3))],
    ),
)
def test_biases_may_be_absent(backend, absent, kernel_size, size):
    call = cast(DEVICES[backend], *make('LSKA', kernel_size, size=size))
    x, weights, biases, dilations = call
    biases = [None if i in absent else bias.requires_grad_() for i, bias in enumerate(biases)]
    leaves = [weight.requires_grad_() for weight in weights] + [b for b in biases if b is not None]
    results = []
    for name in (backend, 'plain'):
        with use_backend(name):
            out = depthwise_cascade(x, weights, biases, dilations)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize(
    ('backend', 'kind', 'kernel_size', 'size', 'batch'),
    table(
        cpu=[(kind, 11, (7, 8), 2) for kind in KINDS],
        triton=[(kind, 7, (4, 5), 1) for kind in ('LSKA', 'LSKATrivial', 'one row')],
    ),
)
def test_frozen_parameters_take_no_gradients_and_change_no_others(
    backend, kind, kernel_size, size, batch
):
    call = cast(DEVICES[backend], *make(kind, kernel_size, size=size, batch=batch))
    x, weights, biases, dilations = call
    tensors = [x, *weights, *biases]
    complete = with_gradients('plain', *call)[1:]
    split = 1 + len(weights)
    for trained in range(len(tensors)):
        leaves = [t.detach().clone().requires_grad_(i == trained) for i, t in enumerate(tensors)]
        with use_backend(backend):
            out = depthwise_cascade(leaves[0], leaves[1:split], leaves[split:], dilations)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        out.backward(grad.to(out))
        present = [leaf.grad is not None for leaf in leaves]
        assert present == [i == trained for i in range(len(tensors))]
        assert relative_error(leaves[trained].grad, complete[trained]) <= 1e-12


@pytest.mark.parametrize('layout', [NCHW, NHWC])
@pytest.mark.parametrize(
    ('backend', 'kernel_size', 'channels', 'size'),
    table(cpu=[(23, 1, (10, 9)), (23, 4, (10, 9))], triton=[(7, 1, (6, 5)), (7, 4, (6, 5))]),
)
def test_keeps_the_layout_and_leaves_its_inputs_alone(backend, kernel_size, channels, size, layout):
    call = make('LSKA', kernel_size, channels=channels, size=size)
    x, weights, biases, dilations = cast(DEVICES[backend], *call)
    x = x.contiguous(memory_format=layout).requires_grad_()
    kept = [t.detach().clone() for t in (x, *weights, *biases)]
    with use_backend(backend):
        out = depthwise_cascade(x, weights, biases, dilations)
    grad = torch.randn_like(out)
    kept_grad = grad.clone()
    (for_input,) = torch.autograd.grad(out, x, grad)
    assert out.is_contiguous(memory_format=layout)
    assert for_input.is_contiguous(memory_format=layout)
    assert torch.equal(grad, kept_grad)
    assert all(map(torch.equal, (x, *weights, *biases), kept))


@pytest.mark.parametrize('layout', [NCHW, NHWC])
@pytest.mark.parametrize(
    ('backend', 'kernel_size', 'size'), table(cpu=[(23, (20, 18))], triton=[(7, (10, 12))])
)
def test_takes_maps_weights_and_gradients_that_lie_anyhow_in_memory(
    backend, kernel_size, size, layout
):
    call = make('LSKA', kernel_size, channels=6, size=size)
    x, weights, biases, dilations = cast(DEVICES[backend], *call)
    weights, biases = [weight[::2] for weight in weights], [bias[::2] for bias in biases]
    assert not weights[0].is_contiguous()
    view = (slice(None), slice(None, None, 2), slice(None, None, 2), slice(1, None, 2))
    expected = with_gradients('plain', x[view], weights, biases, dilations)
    leaf = x.contiguous(memory_format=layout).requires_grad_()
    with use_backend(backend):
        out = depthwise_cascade(leaf[view], weights, biases, dilations)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    turned = grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    (found,) = torch.autograd.grad(out, leaf, turned)
    assert relative_error(out.detach(), expected[0]) <= 1e-12
    assert relative_error(found[view], expected[1]) <= 1e-12


@pytest.mark.parametrize(
    ('backend', 'kind', 'kernel_size', 'size'),
    table(cpu=[('LSKA', 7, (5, 4)), ('LKA', 7, (5, 4))], triton=[('LSKA', 3, (3, 2))]),
)
def test_gradients_of_gradients(backend, kind, kernel_size, size):
    call = make(kind, kernel_size, channels=2, size=size, batch=1)
    x, weights, biases, dilations = cast(DEVICES[backend], *call)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    number = len(weights)

    def run(x, *parameters):
        with use_backend(backend):
            return depthwise_cascade(x, parameters[:number], parameters[number:], dilations)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=backend == 'triton')
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ('backend', 'kernel_size', 'size'), table(cpu=[(23, (10, 9))], triton=[(7, (6, 5))])
)
def test_recomputed_activations_give_the_same_gradients(backend, kernel_size, size):
    call = cast(DEVICES[backend], *make('LSKA', kernel_size, channels=4, size=size))
    x, weights, biases, dilations = call
    leaves = [t.requires_grad_() for t in (*weights, *biases)]

    def run(x):
        return depthwise_cascade(x, weights, biases, dilations)

    with use_backend(backend):
        again = checkpoint(run, x, use_reentrant=False)
        found = torch.autograd.grad(again.square().sum(), leaves)
        expected = torch.autograd.grad(run(x).square().sum(), leaves)
    assert all(map(torch.equal, found, expected))
