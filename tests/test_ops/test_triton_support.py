from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch_versions import since

from mmlska.ops import measured, triton_support

takes_kernels = since('2.7', 'it takes no kernels in Triton, whatever else holds')


@pytest.fixture(autouse=True)
def fresh():
    triton_support._why_not_installed.cache_clear()
    triton_support._why_no_gpu.cache_clear()
    yield
    triton_support._why_not_installed.cache_clear()
    triton_support._why_no_gpu.cache_clear()


def with_capability(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: capability)
    monkeypatch.setattr(torch.version, 'hip', None)


@takes_kernels
def test_a_cpu_has_kernels_only_where_they_are_interpreted(monkeypatch):
    pytest.importorskip('triton')
    cpu = torch.device('cpu')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert triton_support.triton_is_usable(cpu)
    monkeypatch.delenv('TRITON_INTERPRET')
    assert not triton_support.triton_is_usable(cpu)
    assert triton_support.why_no_triton(cpu) == 'it is a CPU'


@takes_kernels
@pytest.mark.parametrize(
    ('capability', 'usable'), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_gpus_from_ampere_on_have_kernels(monkeypatch, capability, usable):
    pytest.importorskip('triton')
    with_capability(monkeypatch, capability)
    assert triton_support.triton_is_usable(torch.device('cuda', 0)) == usable
    if not usable:
        assert '7.5, 8.0 or newer' in triton_support.why_no_triton(torch.device('cuda', 0))


@takes_kernels
@pytest.mark.parametrize('error', [ImportError('absent'), RuntimeError('broken')])
def test_without_a_working_triton_there_are_none(monkeypatch, error):
    def fail(name):
        raise error

    with_capability(monkeypatch, (9, 0))
    monkeypatch.setattr(triton_support.importlib, 'import_module', fail)
    assert type(error).__name__ in triton_support.why_no_triton(torch.device('cuda', 0))


@pytest.mark.parametrize(
    ('torch_version', 'triton_version', 'reason'),
    [
        ('2.6.0+cu124', '3.3.0', 'PyTorch is 2.6.0+cu124, 2.7 or newer is needed'),
        ('2.7.0+cu126', '3.2.0', 'Triton is 3.2.0, 3.3 or newer is needed'),
        ('2.7.0a0+git1234', '3.3.0+git5678', ''),
        ('2.10.1', '3.10.0', ''),
    ],
)
def test_old_releases_have_none(monkeypatch, torch_version, triton_version, reason):
    with_capability(monkeypatch, (9, 0))
    monkeypatch.setattr(torch, '__version__', torch_version)
    stand_in = SimpleNamespace(__version__=triton_version)
    monkeypatch.setattr(triton_support.importlib, 'import_module', lambda name: stand_in)
    assert triton_support.why_no_triton(torch.device('cuda', 0)) == reason


@pytest.fixture
def gpu(monkeypatch):
    """A device that tells its compute capability, and for which there is no row."""
    with_capability(monkeypatch, (9, 0))
    rows = {k: row for k, row in measured.TABLE.items() if not k.processor.startswith('compute')}
    monkeypatch.setattr(measured, 'TABLE', rows)
    measured.gpu.cache_clear()
    yield torch.device('cuda', 0)
    measured.gpu.cache_clear()


@pytest.mark.parametrize('elements', [2**30, None])
@pytest.mark.parametrize('operation', ['depthwise_cascade', 'depthwise_gelu'])
def test_on_a_gpu_that_was_not_measured_nothing_is_faster(gpu, operation, elements):
    for training in (False, True):
        reason = triton_support.why_slower(operation, gpu, elements, training, torch.float16)
        assert reason == 'it was not measured to be faster on compute capability 9.0 in float16'


def test_a_row_holds_for_its_operation_its_pass_its_dtype_and_its_sizes(gpu):
    half = torch.bfloat16
    key = measured.Key('compute capability 9.0', 'depthwise_cascade', True, dtype='bfloat16')
    measured.TABLE[key] = measured.Row(2**20, '', '')
    why_slower = triton_support.why_slower
    assert not why_slower('depthwise_cascade', gpu, 2**20, True, half)
    assert not why_slower('depthwise_cascade', gpu, None, True, half)
    assert 'less than 1048576' in why_slower('depthwise_cascade', gpu, 2**20 - 1, True, half)
    assert 'not measured' in why_slower('depthwise_cascade', gpu, 2**20, False, half)
    assert 'not measured' in why_slower('depthwise_cascade', gpu, 2**20, True, torch.float32)
    assert 'not measured' in why_slower('depthwise_gelu', gpu, 2**20, True, half)


@pytest.mark.parametrize(
    ('device', 'dtype', 'expected'),
    [
        ('cuda', torch.float32, torch.bfloat16),
        ('cuda', torch.float64, torch.float64),
        ('cpu', torch.float32, torch.float32),
    ],
)
def test_under_autocast_a_map_on_a_gpu_counts_as_what_it_is_cast_to(device, dtype, expected):
    x = SimpleNamespace(device=torch.device(device), dtype=dtype)
    with (
        patch.object(triton_support, 'is_autocast', lambda device_type: True),
        patch.object(triton_support, 'autocast_dtype', lambda device_type: torch.bfloat16),
    ):
        assert triton_support.dtype_in_use(x) == expected
    with patch.object(triton_support, 'is_autocast', lambda device_type: False):
        assert triton_support.dtype_in_use(x) == dtype


def test_other_accelerators_have_none(monkeypatch):
    assert not triton_support.triton_is_usable(torch.device('meta'))
    monkeypatch.setattr(torch.version, 'hip', '6.2')
    assert triton_support.why_no_triton(torch.device('cuda', 0)) == 'it is not an NVIDIA GPU'
