import pytest
import torch

from mmlska.ops import matrix_product


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('shape', [(5, 7, 3), (1, 1, 1), (64, 130, 33), (4, 0, 3), (0, 4, 3)])
@pytest.mark.parametrize('bias', [False, True])
def test_is_the_product_whatever_the_strides(dtype, shape, bias):
    torch.manual_seed(0)
    m, n, k = shape
    left, right = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    shift = torch.randn(n).to(dtype) if bias else None
    expected = left.double() @ right.double().t() + (0 if shift is None else shift.double())
    wide = torch.zeros(n, 2 * k, dtype=dtype)
    wide[:, ::2] = right
    turned = [t.t().contiguous().t() for t in (left, right)]
    calls = [(left, right), (turned[0], right), (left, turned[1]), (left, wide[:, ::2])]
    for call in calls:
        found = matrix_product.linear(*call, shift)
        assert found.dtype == dtype and found.is_contiguous()
        error = 3e-2 if dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(found.double(), expected, rtol=error, atol=error)


@pytest.mark.skipif(not matrix_product.EXISTS, reason='this PyTorch was built without oneDNN')
def test_onednn_takes_dense_matrices_in_float32_alone():
    x = torch.randn(4, 6)
    assert matrix_product._is_for_onednn(x) and matrix_product._is_for_onednn(x.t())
    assert not matrix_product._is_for_onednn(x[:, ::2])
    assert not matrix_product._is_for_onednn(x[:, :3])
    assert not matrix_product._is_for_onednn(x.double())
    with torch.backends.mkldnn.flags(enabled=False):
        assert not matrix_product._is_for_onednn(x)
