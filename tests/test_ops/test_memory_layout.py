import pytest
import torch

from mmlska.ops import in_fast_layout, measured, record_choices, triton_support, use_backend

SIZE = (2, 64, 40, 48)


@pytest.fixture(autouse=True)
def measured_machine(monkeypatch):
    """Every processor counts as one on which the layout was measured."""
    monkeypatch.delenv('MMLSKA_OPS', raising=False)
    monkeypatch.setattr(measured, 'cpu', lambda: 'AuthenticAMD')
    if not torch.backends.mkldnn.is_available():
        pytest.skip('this PyTorch was built without oneDNN')


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize('size', [SIZE, (1, 64, 80, 80), (3, 5, 201, 77)])
@pytest.mark.parametrize('requires_grad', [False, True])
def test_a_large_map_becomes_channels_last_with_the_same_values(size, requires_grad):
    x = torch.randn(size, requires_grad=requires_grad)
    out = in_fast_layout(x)
    assert is_channels_last(out)
    assert torch.equal(out, x)
    if requires_grad:
        grad = torch.randn_like(x)
        assert torch.equal(torch.autograd.grad(out, x, grad)[0], grad)


@pytest.mark.parametrize(
    'x',
    [
        torch.randn(1, 8, 16, 16),
        torch.randn(SIZE, dtype=torch.float64),
        torch.randn(SIZE).bfloat16(),
        torch.empty(SIZE, device='meta'),
        torch.randn(SIZE)[0],
        torch.randn(SIZE).to(memory_format=torch.channels_last),
    ],
    ids=['small', 'float64', 'bfloat16', 'meta', 'no batch', 'channels_last'],
)
def test_other_maps_stay_as_they_are(x):
    assert in_fast_layout(x) is x


def test_on_processors_that_were_not_measured_every_map_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(measured, 'cpu', lambda: 'GenuineIntel')
    x = torch.randn(SIZE)
    with record_choices() as choices:
        assert in_fast_layout(x) is x
    assert choices[0].reason == 'it was not measured to be faster on GenuineIntel in float32'


def test_the_choice_is_recorded_with_its_reason():
    with record_choices() as choices:
        in_fast_layout(torch.randn(SIZE))
        in_fast_layout(torch.randn(SIZE).double())
    assert [(choice.operation, choice.form) for choice in choices] == [
        ('in_fast_layout', 'channels_last'),
        ('in_fast_layout', 'unchanged'),
    ]
    assert not choices[0].reason and 'float64' in choices[1].reason


def test_another_type_of_device_than_the_one_that_was_asked_for_changes_nothing():
    x = torch.randn(SIZE)
    assert in_fast_layout(x, device_type='cuda') is x
    assert is_channels_last(in_fast_layout(x, device_type='cpu'))


def test_small_maps_are_taken_where_the_caller_says_so():
    x = torch.randn(1, 8, 16, 16)
    assert is_channels_last(in_fast_layout(x, least=x.numel()))
    assert in_fast_layout(x, least=x.numel() + 1) is x


def test_the_plain_backend_autocast_and_compilers_leave_the_map_alone():
    x = torch.randn(SIZE)
    with use_backend('plain'):
        assert in_fast_layout(x) is x
    with torch.autocast('cpu', torch.bfloat16):
        assert in_fast_layout(x) is x
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: in_fast_layout(x) + 1, backend='eager', fullgraph=True)
    assert not is_channels_last(compiled(x))
    assert torch.func.vmap(in_fast_layout)(x[None].expand(2, *x.shape)).shape == (2, *x.shape)
    with torch.backends.mkldnn.flags(enabled=False):
        assert in_fast_layout(x) is x


@pytest.mark.skipif(
    bool(triton_support.why_no_triton(torch.device('cpu'))),
    reason='Triton does not interpret its kernels',
)
def test_where_the_kernels_in_triton_are_wanted_maps_of_all_sizes_become_channels_last():
    x = torch.randn(2, 3, 4, 5)
    with use_backend('triton'):
        assert is_channels_last(in_fast_layout(x))
        assert is_channels_last(in_fast_layout(x.bfloat16()))
        assert in_fast_layout(x.int()).is_contiguous()
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: in_fast_layout(x) + 1, backend='eager', fullgraph=True)
        assert is_channels_last(compiled(x))
    assert in_fast_layout(x) is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_maps_on_a_gpu_become_channels_last_where_the_kernels_were_measured(monkeypatch):
    device = torch.device('cuda', 0)
    if triton_support.why_no_triton(device):
        pytest.skip(triton_support.why_no_triton(device))
    x = torch.randn(2, 64, 64, 64, device=device)
    key = measured.Key(measured.gpu(device), 'depthwise_cascade', False)
    monkeypatch.delitem(measured.TABLE, key, raising=False)
    assert in_fast_layout(x) is x
    monkeypatch.setitem(measured.TABLE, key, measured.Row(2**16, '', ''))
    assert is_channels_last(in_fast_layout(x))
    assert in_fast_layout(x[:, :1, :8, :8]).stride() == x[:, :1, :8, :8].stride()
    with use_backend('plain'):
        assert in_fast_layout(x) is x
