import pytest
import torch
import torch.nn.functional as F

from mmlska.ops import in_bands, measured, record_choices, row_bands, use_backend

CHANNELS = 4


@pytest.fixture(autouse=True)
def small_bands_on_any_processor(monkeypatch):
    monkeypatch.delenv('MMLSKA_OPS', raising=False)
    monkeypatch.setattr(measured, 'cpu', lambda: 'AuthenticAMD')
    monkeypatch.setattr(row_bands, 'WORTHWHILE', 1)
    monkeypatch.setattr(row_bands, 'IN_BAND', 1)
    if not torch.backends.mkldnn.is_available():
        pytest.skip('this PyTorch was built without oneDNN')


class Chain:
    """Convolutions that see ``reach`` rows; counts its calls."""

    def __init__(self, reach):
        torch.manual_seed(0)
        self.weight = torch.randn(CHANNELS, CHANNELS, 2 * reach + 1, 3) / 3
        self.bias = torch.randn(CHANNELS)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        padding = (self.weight.shape[2] // 2, 1)
        return F.gelu(F.conv2d(x, self.weight, self.bias, padding=padding))


@pytest.mark.parametrize('reach', [0, 1, 2, 5])
@pytest.mark.parametrize('height', [1, 4, 5, 8, 9, 41])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_equals_the_whole_map(reach, height, layout):
    chain = Chain(reach)
    x = torch.randn(2, CHANNELS, height, 7).contiguous(memory_format=layout)
    kept = x.clone()
    expected = chain(x)
    with torch.no_grad():
        out = in_bands(chain, x, reach, CHANNELS)
    assert chain.calls == 1 + 2 * -(-height // max(1, 4 * reach))
    # Another size of map may take another kernel, which adds up in another order.
    assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert out.is_contiguous(memory_format=layout)
    assert torch.equal(x, kept)


def test_the_whole_map_is_taken_where_bands_do_not_pay(monkeypatch):
    chain, x = Chain(1), torch.randn(1, CHANNELS, 40, 7)
    trained = torch.ones(1, requires_grad=True)
    in_bands(chain, x, 1, CHANNELS, [trained])
    in_bands(chain, x.clone().requires_grad_(), 1, CHANNELS)
    in_bands(chain, x[0], 1, CHANNELS)
    in_bands(chain, x, 1, CHANNELS, why_whole=lambda: 'a hook waits')
    with use_backend('plain'):
        in_bands(chain, x, 1, CHANNELS)
    with torch.autocast('cpu', torch.bfloat16):
        in_bands(chain, x, 1, CHANNELS)
    monkeypatch.setattr(row_bands, 'WORTHWHILE', CHANNELS * 40 * 7 + 1)
    in_bands(chain, x, 1, CHANNELS)
    assert chain.calls == 7


def test_what_was_decided_is_recorded():
    chain, x = Chain(1), torch.randn(1, CHANNELS, 40, 7)
    with record_choices() as choices:
        in_bands(chain, x, 1, CHANNELS)
        in_bands(chain, x, 1, CHANNELS, why_whole=lambda: 'a hook waits')
    assert [(choice.form, choice.reason) for choice in choices] == [
        ('bands', ''),
        ('whole', 'a hook waits'),
    ]


def test_a_compiler_sees_the_whole_map():
    chain, x = Chain(1), torch.randn(1, CHANNELS, 40, 7)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: in_bands(chain, x, 1, CHANNELS), backend='eager', fullgraph=True
    )
    with torch.no_grad():
        assert torch.allclose(compiled(x), chain(x), atol=1e-6)
    assert chain.calls == 2
