import pytest
import torch

from mmlska.ops import triton_support
from mmlska.ops.describe import describe_forms


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv('MMLSKA_OPS', raising=False)


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that is asked for its name only, and what keeps Triton from it."""
    reasons = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _: 'Tesla')
    monkeypatch.setattr(triton_support, 'why_no_triton', lambda _: ''.join(reasons))
    return reasons


def test_a_gpu_with_triton(fake_gpu):
    assert describe_forms().startswith('on the GPU (Tesla): kernels in Triton')


def test_a_gpu_without_says_why(fake_gpu):
    fake_gpu.append('it is too old')
    assert describe_forms().startswith("on the GPU (Tesla): PyTorch's own")
    assert describe_forms().endswith('because it is too old')


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert describe_forms().startswith('on the CPU')


def test_the_environment_decides_and_is_checked(monkeypatch):
    monkeypatch.setenv('MMLSKA_OPS', 'plain')
    assert describe_forms() == "'plain' wherever it can run, as MMLSKA_OPS says"
    monkeypatch.setenv('MMLSKA_OPS', 'tritn')
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        describe_forms()
