"""The kernels run on a GPU where there is one, in Triton's interpreter where there is none."""

import pytest
import torch
from mmcv.cnn.bricks.drop import DropPath, drop_path
from offline import compile_kernels
from torch.utils.checkpoint import checkpoint

from mmlska.ops import add_scaled, record_choices, triton_support, use_backend

pytestmark = pytest.mark.usefixtures('rounding_of_a_gpu')

LAYOUTS = [torch.contiguous_format, torch.channels_last]
layouts = pytest.mark.parametrize('layout', LAYOUTS, ids=['contiguous', 'channels_last'])
GPU = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
WHY_NO_TRITON = triton_support.why_no_triton(GPU)
needs_kernels = pytest.mark.skipif(bool(WHY_NO_TRITON), reason=WHY_NO_TRITON or 'runs')
MASK = torch.tensor([0.0, 1.25]).view(2, 1, 1, 1)
SHAPES = [(2, 3, 4, 5), (2, 33, 13, 17), (2, 1, 1, 1), (2, 160, 5, 1), (2, 70, 1, 3)]


def make(layout=torch.contiguous_format, dtype=torch.float64, shape=(2, 3, 4, 5)):
    torch.manual_seed(0)
    x, branch = (torch.randn(shape, dtype=dtype).contiguous(memory_format=layout) for _ in range(2))
    return x, branch, torch.randn(shape[1], dtype=dtype)


def by_the_equation(x, branch, scale, mask=None):
    mask = torch.ones_like(MASK) if mask is None else mask
    return x + torch.einsum('nchw,c,nijk->nchw', branch, scale, mask.to(x))


def with_gradients(backend, x, branch, scale, mask=None, device=GPU):
    """Output and the gradients of both maps and the scale, of a fixed random loss."""
    leaves = [t.detach().to(device).requires_grad_() for t in (x, branch, scale)]
    with use_backend(backend):
        out = add_scaled(*leaves, None if mask is None else mask.to(device))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def relative_error(found, expected):
    scale = expected.abs().max().clamp_min(1e-30)
    return ((found.to(expected) - expected).abs().max() / scale).item()


@pytest.mark.parametrize('mask', [None, MASK.double()])
@layouts
@pytest.mark.parametrize('backend', ['auto', 'plain'])
def test_is_the_sum_that_it_says(layout, backend, mask):
    x, branch, scale = make(layout)
    kept = [t.clone() for t in (x, branch, scale)]
    with use_backend(backend):
        out = add_scaled(x, branch, scale, mask)
    assert torch.allclose(out, by_the_equation(x, branch, scale, mask), rtol=1e-14)
    assert out.is_contiguous(memory_format=layout)
    assert all(map(torch.equal, (x, branch, scale), kept))


@pytest.mark.parametrize('mask', [None, MASK.double()])
@pytest.mark.parametrize('backend', ['auto', pytest.param('triton', marks=needs_kernels)])
def test_gradients(backend, mask):
    leaves = [t.to(GPU).requires_grad_() for t in make()]

    def run(*leaves):
        with use_backend(backend):
            return add_scaled(*leaves, None if mask is None else mask.to(GPU))

    is_interpreted = backend == 'triton'
    assert torch.autograd.gradcheck(run, leaves, fast_mode=is_interpreted)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=is_interpreted)


@needs_kernels
@pytest.mark.parametrize('mask', [None, MASK.double()])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@layouts
def test_kernels_equal_the_reference_with_all_gradients(layout, shape, mask):
    call = *make(layout, shape=shape), mask
    expected = with_gradients('plain', *call)
    found = with_gradients('triton', *call)
    assert all(relative_error(a, b) <= 1e-13 for a, b in zip(found, expected, strict=True))
    single = [None if t is None else t.float() for t in call]
    found = with_gradients('triton', *single)
    assert all(relative_error(a, b) <= 1e-6 for a, b in zip(found, expected, strict=True))
    if min(shape[1:]) > 1:
        assert found[0].is_contiguous(memory_format=layout)


@needs_kernels
@layouts
def test_tiles_and_programs_fit_together(layout, monkeypatch):
    from mmlska.ops.residual import triton_kernels

    # Several tiles along both axes, the last ones beyond the border, and several a program.
    monkeypatch.setattr(triton_kernels, 'ELEMENTS', 64)
    monkeypatch.setattr(triton_kernels, 'MOST_CHANNELS', 8)
    monkeypatch.setattr(triton_kernels, 'ENOUGH_PROGRAMS', 4)
    call = *make(layout, shape=(2, 11, 9, 7)), MASK.double()
    found, expected = with_gradients('triton', *call), with_gradients('plain', *call)
    assert all(relative_error(a, b) <= 1e-13 for a, b in zip(found, expected, strict=True))


@needs_kernels
@pytest.mark.parametrize('trained', range(3))
def test_frozen_tensors_take_no_gradients_and_change_no_others(trained):
    call = [t.to(GPU) for t in make()]
    complete = with_gradients('plain', *call)
    leaves = [t.clone().requires_grad_(i == trained) for i, t in enumerate(call)]
    with use_backend('triton'):
        out = add_scaled(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(grad)
    assert [leaf.grad is not None for leaf in leaves] == [i == trained for i in range(3)]
    assert relative_error(leaves[trained].grad, complete[1 + trained]) <= 1e-13


@needs_kernels
def test_takes_maps_and_gradients_that_lie_anyhow_in_memory():
    x, branch, scale = make(shape=(2, 8, 6, 10))
    call = x[:, ::2, 1:, ::3], branch.transpose(2, 3).contiguous().transpose(2, 3)[:, 1::2, 1:, ::3]
    expected = with_gradients('plain', *call, scale[::2], MASK.double())
    leaves = [t.to(GPU).requires_grad_() for t in (*call, scale[::2])]
    with use_backend('triton'):
        out = add_scaled(*leaves, MASK.double().to(GPU))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    turned = grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    found = [out.detach(), *torch.autograd.grad(out, leaves, turned)]
    assert all(relative_error(a, b) <= 1e-13 for a, b in zip(found, expected, strict=True))


@needs_kernels
def test_half_precision_is_as_exact_as_the_reference():
    # As under autocast: the branch alone is of half precision, the sum is not.
    x, branch, scale = make(torch.channels_last, torch.float32, (2, 33, 13, 17))
    call = x, branch.bfloat16(), scale, MASK
    truth = with_gradients('plain', *(t.double() for t in call))
    plain, found = with_gradients('plain', *call), with_gradients('triton', *call)
    for value, reference, exact in zip(found, plain, truth, strict=True):
        assert value.dtype == reference.dtype
        assert relative_error(value, exact) <= max(1.5 * relative_error(reference, exact), 1e-6)


@needs_kernels
def test_recomputed_activations_give_the_same_gradients():
    x, branch, scale = (t.to(GPU).requires_grad_() for t in make(dtype=torch.float32))
    drop = DropPath(0.5)

    def run(branch):
        mask = drop(branch.new_ones(2, 1, 1, 1))
        return add_scaled(x, branch, scale, mask)

    results = []
    for compute in (run, lambda branch: checkpoint(run, branch, use_reentrant=False)):
        torch.manual_seed(3)
        with use_backend('triton'):
            results.append(torch.autograd.grad(compute(branch).square().sum(), [x, branch, scale]))
    assert all(map(torch.equal, *results))


@needs_kernels
def test_an_empty_batch_is_none_the_less_one():
    x, branch, scale = make()
    found = with_gradients('triton', x[:0], branch[:0], scale)
    assert [value.shape for value in found] == [(0, 3, 4, 5)] * 3 + [(3,)]
    assert not found[-1].any()


def test_a_mask_drops_whole_images_as_the_layer_that_draws_it():
    branch, dtype = torch.randn(64, 3, 2, 2), torch.float32
    torch.manual_seed(5)
    expected = drop_path(branch, 0.3, training=True)
    after = torch.rand(4)
    torch.manual_seed(5)
    mask = DropPath(0.3).train()(branch.new_ones(64, 1, 1, 1, dtype=dtype))
    out = add_scaled(torch.zeros_like(branch), branch, torch.ones(3), mask)
    assert torch.equal(after, torch.rand(4))
    assert 0 < mask.count_nonzero() < 64
    torch.testing.assert_close(out, expected)


def operations(call, *tensors):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(*tensors)
    return {event.key for event in profile.key_averages()}


def test_inference_is_one_operation_and_plain_inference_two():
    tensors = make(torch.contiguous_format)
    assert 'aten::addcmul' in operations(add_scaled, *tensors)
    with use_backend('plain'):
        assert {'aten::add', 'aten::mul'} <= operations(add_scaled, *tensors)


def test_choices_are_recorded_with_their_reason():
    x, branch, scale = make()
    with record_choices() as choices:
        add_scaled(x, branch, scale)
        add_scaled(x, branch, scale.requires_grad_())
        with use_backend('plain'):
            add_scaled(x, branch, scale)
    assert {choice.operation for choice in choices} == {'add_scaled'}
    assert [choice.form for choice in choices] == ['one_pass', 'plain', 'plain']
    assert [bool(choice.reason) for choice in choices] == [False, True, True]
    assert choices[2].reason == "the backend is 'plain'"


@needs_kernels
def test_kernels_run_by_name_where_they_can():
    x, branch, scale = (t.to(GPU).requires_grad_() for t in make())
    with record_choices() as choices, use_backend('triton'):
        add_scaled(x, branch, scale)
        add_scaled(x, branch[:1], scale)
        add_scaled(x, branch, scale, torch.ones(2, 3, 1, 1, dtype=x.dtype, device=GPU))
    assert [choice.form for choice in choices] == ['triton', 'plain', 'plain']
    assert 'of shape (N, C, H, W)' in choices[1].reason and '(N, 1, 1, 1)' in choices[2].reason


def test_a_traced_graph_is_the_same_with_and_without_gradients():
    x, branch, scale = make(torch.contiguous_format)
    mask = MASK.double()
    traced = torch.jit.trace(lambda x, b: add_scaled(x, b, scale, mask), (x, branch))
    assert torch.equal(traced(x, branch), x + branch * (scale[:, None, None] * mask))
    nodes = {node.kind() for node in traced.graph.nodes()}
    assert {'aten::add', 'aten::mul'} <= nodes and 'aten::addcmul' not in nodes


@pytest.mark.parametrize('backend', ['auto', 'triton'])
def test_compilers_and_exported_programs_see_operators_of_pytorch_alone(backend):
    class Sum(torch.nn.Module):
        def forward(self, x, branch, scale, mask):
            return add_scaled(x, branch, scale, mask)

    call, targets = (*make(dtype=torch.float32), MASK), []

    def note(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes if 'call' in node.op)
        return graph.forward

    torch._dynamo.reset()
    with use_backend(backend):
        out = torch.compile(Sum(), backend=note, fullgraph=True)(*call)
        program = torch.export.export(Sum(), call)
    torch._dynamo.reset()
    torch.testing.assert_close(out, by_the_equation(*call))
    assert targets and not any('mmlska' in target for target in targets)
    exported = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert {'aten.mul.Tensor', 'aten.add.Tensor'} <= exported
    assert not any('mmlska' in target for target in exported)


def test_dtypes_are_promoted_as_those_of_the_sum():
    x, branch, scale = make(torch.contiguous_format, torch.float32)
    out = add_scaled(x, branch.bfloat16(), scale)
    assert out.dtype == torch.float32
    assert torch.allclose(out, x + branch.bfloat16() * scale[:, None, None], atol=1e-6)


@pytest.mark.slow
def test_compiled_for_gpus_every_value_has_a_register(tmp_path):
    kernels = compile_kernels('compiled_residual.py', tmp_path)
    assert len(kernels) == 16
    assert not [kernel for kernel in kernels if int(kernel[-1])]
