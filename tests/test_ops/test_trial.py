"""The stand-ins fail where Triton does: when a kernel is launched for the first time."""

import ast
import logging
import subprocess

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmlska.ops import (
    depthwise_cascade,
    depthwise_gelu,
    dispatch,
    in_fast_layout,
    record_choices,
    trial,
    triton_support,
    use_backend,
)

triton = pytest.importorskip('triton')

DEVICE = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
if triton_support.why_no_triton(DEVICE):
    pytest.skip(triton_support.why_no_triton(DEVICE), allow_module_level=True)

from mmlska.ops.depthwise_cascade import triton_kernels as cascade_kernels  # noqa: E402
from mmlska.ops.depthwise_gelu import triton_kernels as gelu_kernels  # noqa: E402
from mmlska.ops.residual import triton_kernels as residual_kernels  # noqa: E402


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """Nothing is remembered of earlier trials, nor of this one afterwards."""
    monkeypatch.delenv('MMLSKA_OPS', raising=False)
    monkeypatch.setattr(trial, '_outcomes', {})
    dispatch.forget_plans()


def make(size=(1, 4, 6, 5)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator)
    weights = [torch.randn(size[1], 1, *k, generator=generator) for k in ((1, 3), (3, 1))]
    biases = [torch.randn(size[1], generator=generator) for _ in weights]
    moved = [[tensor.to(DEVICE) for tensor in tensors] for tensors in (weights, biases)]
    return (x.to(DEVICE), *moved, [1, 1])


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


SOURCE = 'taps = ()' + '  # long' * 100
FAILURES = {
    'compilation': (
        triton.CompilationError(SOURCE, ast.parse('taps = ()').body[0], 'a tuple without items'),
        'a tuple without items',
    ),
    'launch': (RuntimeError('Triton Error [CUDA]: invalid argument'), 'invalid argument'),
    'no compiler': (RuntimeError('Failed to find C compiler.'), 'Failed to find C compiler'),
    'no headers': (subprocess.CalledProcessError(1, ['gcc', 'main.c']), 'gcc'),
    'no folder': (PermissionError(13, 'Permission denied', '/root/.triton'), '/root/.triton'),
    'no driver': (OSError('libcuda.so.1: cannot open shared object file'), 'libcuda.so.1'),
}


def test_the_kernels_work_here():
    assert trial.why_failed(DEVICE) == ''


@pytest.mark.parametrize('name', FAILURES)
def test_a_failure_is_told_once_and_the_reference_runs(name, monkeypatch, caplog):
    error, text = FAILURES[name]
    monkeypatch.setattr(cascade_kernels, 'apply_march', fail_with(error))
    call = make()
    with use_backend('plain'):
        expected = depthwise_cascade(*call)
    with use_backend('triton'), record_choices() as choices:
        for _ in range(3):
            assert torch.equal(depthwise_cascade(*call), expected)
    assert [choice.form for choice in choices] == ['plain'] * 3
    assert type(error).__name__ in choices[0].reason and text in choices[0].reason
    said = [r.getMessage() for r in caplog.records if 'do not work on' in r.getMessage()]
    assert len(said) == 1 and choices[0].reason in said[0]


def test_where_the_cascade_fails_the_convolution_with_gelu_is_not_trusted_either(monkeypatch):
    monkeypatch.setattr(cascade_kernels, 'apply_march', fail_with(RuntimeError('no compiler')))
    x, _, biases, _ = make()
    weight = torch.ones(4, 1, 3, 3, device=DEVICE)
    with use_backend('triton'), record_choices() as choices:
        depthwise_gelu(x, weight, biases[0])
        assert in_fast_layout(x) is x
    assert [choice.form for choice in choices] == ['plain', 'unchanged']
    assert 'no compiler' in choices[0].reason


def off_by_a_thousandth(function, place):
    """A function with one wrong value in its result, or in that part of it."""

    def run(*arguments, **options):
        found = function(*arguments, **options)
        value = found if place is None else found[place]
        value[(0,) * value.dim()] += 1e-3 * value.abs().max()
        return found

    return run


@pytest.mark.parametrize(
    ('module', 'function', 'place', 'operation'),
    [
        (cascade_kernels, 'apply_march', None, 'depthwise_cascade'),
        (cascade_kernels, 'differentiate_march', None, 'depthwise_cascade'),
        (gelu_kernels, 'convolve', None, 'depthwise_gelu'),
        (gelu_kernels, 'differentiate', 1, 'depthwise_gelu'),
        (residual_kernels, 'add', None, 'add_scaled'),
        (residual_kernels, 'differentiate', 1, 'add_scaled'),
    ],
)
def test_wrong_numbers_are_noticed(module, function, place, operation, monkeypatch, caplog):
    wrong = off_by_a_thousandth(getattr(module, function), place)
    monkeypatch.setattr(module, function, wrong)
    reason = trial.why_failed(DEVICE)
    assert reason.startswith(f'{operation} is off by ')
    assert reason in caplog.text


def test_results_that_are_no_numbers_are_noticed(monkeypatch):
    convolve = gelu_kernels.convolve
    monkeypatch.setattr(gelu_kernels, 'convolve', lambda *a, **k: convolve(*a, **k) * float('nan'))
    assert 'off by nan' in trial.why_failed(DEVICE)


@pytest.fixture
def tries(monkeypatch):
    """One entry for each trial."""
    found, compare = [], trial._why_different

    def count(device):
        found.append(device)
        return compare(device)

    monkeypatch.setattr(trial, '_why_different', count)
    return found


def test_a_device_is_tried_once(tries):
    call = make()
    with use_backend('triton'):
        for _ in range(3):
            depthwise_cascade(*call)
        in_fast_layout(call[0])
    assert len(tries) == 1


def test_nothing_that_surrounds_a_call_reaches_the_trial(tries):
    call = make()
    surroundings = [
        torch.inference_mode(),
        torch.autocast(DEVICE.type, torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(fail_with(AssertionError('seen')), lambda x: x),
    ]
    for surrounding in surroundings:
        trial._outcomes.clear()
        dispatch.forget_plans()
        with surrounding, use_backend('triton'), record_choices() as choices:
            depthwise_cascade(*call)
        assert [choice.form for choice in choices] == ['triton'], surrounding
    assert len(tries) == 3


def test_the_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    trial.why_failed(DEVICE)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_first_call_that_is_recomputed_saves_the_same_tensors_again(tries):
    x, *rest = make()
    x.requires_grad_()
    with use_backend('triton'):
        out = checkpoint(lambda x: depthwise_cascade(x, *rest), x, use_reentrant=False)
        (found,) = torch.autograd.grad(out.square().sum(), x)
    with use_backend('plain'):
        (expected,) = torch.autograd.grad(depthwise_cascade(x, *rest).square().sum(), x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert len(tries) == 1


def test_a_compiler_asks_before_it_keeps_its_choice(monkeypatch):
    x, weights, biases, dilations = make()
    layer = lambda x: depthwise_cascade(x, weights, biases, dilations)  # noqa: E731
    for works in (True, False):
        torch._dynamo.reset()
        trial._outcomes.clear()
        graphs = []

        def note(graph, _, graphs=graphs):
            graphs.append(str(graph.graph))
            return graph

        if not works:
            monkeypatch.setattr(cascade_kernels, 'apply_march', fail_with(RuntimeError('broken')))
        with use_backend('triton'), torch.no_grad():
            torch.compile(layer, fullgraph=True, backend=note)(x)
        assert ('mmlska' in graphs[0]) == works
    torch._dynamo.reset()


def test_nothing_is_tried_while_a_graph_is_captured(tries, monkeypatch):
    gpu = torch.device('cuda', 0)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert 'a CUDA graph is captured' in trial.why_failed(gpu)
    assert not tries and gpu not in trial._outcomes
    monkeypatch.setitem(trial._outcomes, gpu, '')
    assert trial.why_failed(gpu) == ''


def test_tracers_try_nothing(tries):
    x, *rest = make()
    with use_backend('triton'):
        torch.jit.trace(lambda x: depthwise_cascade(x, *rest), x, check_trace=False)
        torch.func.vmap(lambda x: depthwise_cascade(x, *rest))(x[None])
    assert not tries


def test_details_are_there_for_whoever_asks(monkeypatch, caplog):
    monkeypatch.setattr(cascade_kernels, 'apply_march', fail_with(RuntimeError('broken')))
    with caplog.at_level(logging.DEBUG, 'mmlska'):
        trial.why_failed(DEVICE)
    assert 'Traceback' in caplog.text
