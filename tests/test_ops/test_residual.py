import pytest
import torch

from mmlska.ops import add_scaled, use_backend

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(layout, dtype=torch.float64):
    torch.manual_seed(0)
    x, branch = (
        torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=layout) for _ in range(2)
    )
    return x, branch, torch.randn(3, dtype=dtype)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('backend', ['auto', 'plain'])
def test_is_the_sum_that_it_says(layout, backend):
    x, branch, scale = make(layout)
    kept = [t.clone() for t in (x, branch, scale)]
    with use_backend(backend):
        out = add_scaled(x, branch, scale)
    assert torch.allclose(out, x + torch.einsum('nchw,c->nchw', branch, scale), rtol=1e-14)
    assert out.is_contiguous(memory_format=layout)
    assert all(map(torch.equal, (x, branch, scale), kept))


def test_gradients():
    leaves = [t.requires_grad_() for t in make(torch.contiguous_format)]
    assert torch.autograd.gradcheck(add_scaled, leaves)
    assert torch.autograd.gradgradcheck(add_scaled, leaves)


def operations(call, *tensors):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(*tensors)
    return {event.key for event in profile.key_averages()}


def test_inference_is_one_operation_and_plain_inference_two():
    tensors = make(torch.contiguous_format)
    assert 'aten::addcmul' in operations(add_scaled, *tensors)
    with use_backend('plain'):
        assert {'aten::add', 'aten::mul'} <= operations(add_scaled, *tensors)


def test_a_traced_graph_is_the_same_with_and_without_gradients():
    x, branch, scale = make(torch.contiguous_format)
    traced = torch.jit.trace(lambda x, branch: add_scaled(x, branch, scale), (x, branch))
    assert torch.equal(traced(x, branch), x + branch * scale[:, None, None])


def test_dtypes_are_promoted_as_those_of_the_sum():
    x, branch, scale = make(torch.contiguous_format, torch.float32)
    out = add_scaled(x, branch.bfloat16(), scale)
    assert out.dtype == torch.float32
    assert torch.allclose(out, x + branch.bfloat16() * scale[:, None, None], atol=1e-6)
