from types import SimpleNamespace

import pytest
import torch

from mmlska.ops import describe, triton_support
from mmlska.ops.describe import describe_forms


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv('MMLSKA_OPS', raising=False)


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that is asked for its name only, what keeps Triton from it, and how a trial ends."""
    reasons, failures = [], []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _: 'Tesla')
    monkeypatch.setattr(triton_support, 'why_no_triton', lambda _: ''.join(reasons))
    monkeypatch.setattr(describe, 'why_failed', lambda _: ''.join(failures))
    return SimpleNamespace(reasons=reasons, failures=failures)


def test_a_gpu_with_triton(fake_gpu):
    assert describe_forms().startswith('on the GPU (Tesla): kernels in Triton')


def test_a_gpu_without_says_why(fake_gpu):
    fake_gpu.reasons.append('it is too old')
    assert describe_forms().startswith("on the GPU (Tesla): PyTorch's own")
    assert describe_forms().endswith('because it is too old')


@pytest.mark.parametrize('forced', [False, True])
def test_a_gpu_on_which_the_kernels_fail_says_how(fake_gpu, monkeypatch, forced):
    fake_gpu.failures.append('RuntimeError: no C compiler')
    if forced:
        monkeypatch.setenv('MMLSKA_OPS', 'triton')
    assert describe_forms().endswith('because RuntimeError: no C compiler')


def test_a_gpu_whose_kernels_are_asked_for_by_name(fake_gpu, monkeypatch):
    monkeypatch.setenv('MMLSKA_OPS', 'triton')
    assert describe_forms() == "'triton' wherever it can run, as MMLSKA_OPS says"


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert describe_forms().startswith('on the CPU')


def test_the_environment_decides_and_is_checked(monkeypatch):
    monkeypatch.setenv('MMLSKA_OPS', 'plain')
    assert describe_forms() == "'plain' wherever it can run, as MMLSKA_OPS says"
    monkeypatch.setenv('MMLSKA_OPS', 'tritn')
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        describe_forms()
