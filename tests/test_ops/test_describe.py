from types import SimpleNamespace

import pytest
import torch

from mmlska.ops import describe, measured, triton_support
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
    monkeypatch.setattr(measured, 'gpu', lambda _: 'compute capability 9.0')
    monkeypatch.setattr(triton_support, 'why_no_triton', lambda _: ''.join(reasons))
    monkeypatch.setattr(describe, 'why_failed', lambda _: ''.join(failures))
    return SimpleNamespace(reasons=reasons, failures=failures)


def test_a_gpu_whose_kernels_were_measured(fake_gpu, monkeypatch):
    key = measured.Key('compute capability 9.0', 'depthwise_gelu', True)
    monkeypatch.setitem(measured.TABLE, key, measured.Row(2**20, '', ''))
    text = describe_forms()
    assert text.startswith('on the GPU (Tesla): kernels in Triton for ')
    assert 'depthwise_gelu; small maps by PyTorch (by the shipped table)' in text


def test_a_gpu_whose_kernels_were_not_measured(fake_gpu, monkeypatch):
    monkeypatch.setattr(measured, 'TABLE', {})
    text = describe_forms()
    assert text.startswith("on the GPU (Tesla): PyTorch's own")
    assert (
        'not measured to be faster on compute capability 9.0' in text
        and 'MMLSKA_OPS=triton' in text
    )


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


@pytest.mark.parametrize(
    ('processor', 'text'),
    [('GenuineIntel', 'where that is faster on GenuineIntel'), ('aarch64', 'nothing was measured')],
)
def test_no_gpu(monkeypatch, processor, text):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    monkeypatch.setattr(measured, 'cpu', lambda: processor)
    assert describe_forms().startswith('on the CPU: ') and text in describe_forms()
    assert '(by the shipped table)' in describe_forms()


def test_a_table_of_this_machine_is_named_with_its_date_and_file(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    row = measured.Row(2**14, '2026-11-26', '/cache/tuned.json')
    key = measured.Key(measured.cpu(), 'depthwise_cascade', True, 'short dilated')
    monkeypatch.setattr(measured, 'tuned_rows', lambda processor: {key: row})
    assert 'wrote on 2026-11-26: /cache/tuned.json)' in describe_forms()


def test_the_environment_decides_and_is_checked(monkeypatch):
    monkeypatch.setenv('MMLSKA_OPS', 'plain')
    assert describe_forms() == "'plain' wherever it can run, as MMLSKA_OPS says"
    monkeypatch.setenv('MMLSKA_OPS', 'tritn')
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        describe_forms()
