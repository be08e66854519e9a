import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlska.layers import ConvFFN, conv_ffn
from mmlska.ops import depthwise_gelu, row_bands, use_backend


def test_equals_its_equation():
    torch.manual_seed(0)
    ffn = ConvFFN(4, 12).double()
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    hidden = torch.einsum('oc,nchw->nohw', ffn.fc1.weight[:, :, 0, 0], x)
    hidden = F.conv2d(hidden, ffn.dwconv.weight, padding=1, groups=12)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    expected = torch.einsum('oc,nchw->nohw', ffn.fc2.weight[:, :, 0, 0], hidden)
    assert torch.allclose(ffn(x), expected, rtol=1e-12)


def test_activation_is_configurable():
    x = torch.randn(1, 4, 5, 5)
    torch.manual_seed(0)
    gelu = ConvFFN(4, 8)
    relu = ConvFFN(4, 8, act_cfg=dict(type='ReLU'))
    relu.load_state_dict(gelu.state_dict())
    assert not torch.allclose(gelu(x), relu(x))


def test_dropout_acts_only_in_training():
    ffn = ConvFFN(4, 8, drop_rate=0.5)
    x = torch.randn(1, 4, 16, 16)
    assert (ffn(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    ffn.eval()
    assert torch.equal(ffn(x), ffn(x))


def test_gradients():
    ffn = ConvFFN(2, 4).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ffn, (x,))


@pytest.fixture
def bands_everywhere(monkeypatch):
    monkeypatch.setattr(row_bands, 'WORTHWHILE', 1)
    monkeypatch.setattr(row_bands, 'IN_BAND', 1)


@torch.no_grad()
def test_inference_band_by_band_gives_the_same(bands_everywhere):
    torch.manual_seed(0)
    ffn, x = ConvFFN(8, 32).eval(), torch.randn(2, 8, 23, 9)
    out = ffn(x)
    with use_backend('plain'):
        expected = ffn(x)
    assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()


@torch.no_grad()
def test_a_hook_sees_one_call_of_a_whole_map(bands_everywhere):
    ffn, heights = ConvFFN(8, 32).eval(), []
    ffn.dwconv.register_forward_hook(lambda module, inputs, out: heights.append(out.shape[2]))
    ffn(torch.randn(1, 8, 23, 9))
    assert heights == [23]


@torch.no_grad()
def test_an_activation_that_sees_the_map_sees_the_whole(bands_everywhere):
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean((2, 3), keepdim=True)

    ffn, x = ConvFFN(8, 32).eval(), torch.randn(1, 8, 23, 9)
    ffn.act = Centred()
    hidden = ffn.dwconv(ffn.fc1(x))
    assert torch.allclose(ffn(x), ffn.fc2(hidden - hidden.mean((2, 3), keepdim=True)), atol=1e-5)


@pytest.fixture
def asked(monkeypatch):
    """Maps of which the convolution and GELU were asked for in one operation."""
    monkeypatch.setattr(conv_ffn, 'may_fuse_gelu', lambda x: True)
    maps = []

    def note(x, *parameters):
        maps.append(x.shape)
        return depthwise_gelu(x, *parameters)

    monkeypatch.setattr(conv_ffn, 'depthwise_gelu', note)
    return maps


def test_convolution_and_gelu_are_one_operation_unless_watched(asked):
    x = torch.randn(1, 4, 5, 6)
    ffn, seen = ConvFFN(4, 8), []
    expected = ffn(x)
    assert asked == [(1, 8, 5, 6)]
    # The bias of the 1x1 is added later, which rounds otherwise.
    torch.testing.assert_close(expected, ffn.fc2(ffn.act(ffn.dwconv(ffn.fc1(x)))))
    for watched in (ffn.fc1, ffn.dwconv, ffn.act):
        handle = watched.register_forward_hook(lambda *call: seen.append(call))
        torch.testing.assert_close(ffn(x), expected)
        handle.remove()
    traced = torch.jit.trace(ffn, x, check_trace=False)
    torch.testing.assert_close(traced(x), expected)
    assert len(asked) == 1 and len(seen) == 3


@pytest.mark.parametrize(
    'options',
    [
        dict(padding_mode='circular'),
        dict(dilation=2, padding=2),
        dict(kernel_size=5, padding=2),
        dict(groups=2),
    ],
)
def test_another_convolution_is_called_as_the_module_that_it_is(options, asked):
    torch.manual_seed(0)
    ffn, x = ConvFFN(4, 8), torch.randn(1, 4, 9, 7)
    ffn.dwconv = nn.Conv2d(8, 8, **{**dict(kernel_size=3, padding=1, groups=8), **options})
    assert torch.equal(ffn(x), ffn.fc2(ffn.act(ffn.dwconv(ffn.fc1(x)))))
    assert not asked


@pytest.mark.parametrize(
    'options', [dict(kernel_size=3, padding=1), dict(kernel_size=1, groups=2)], ids=str
)
def test_another_first_convolution_is_called_as_the_module_that_it_is(options, asked):
    ffn, x = ConvFFN(4, 8), torch.randn(1, 4, 5, 6)
    ffn.fc1 = nn.Conv2d(4, 8, **options)
    assert torch.equal(ffn(x), ffn.fc2(ffn.act(ffn.dwconv(ffn.fc1(x)))))
    assert not asked


def test_devices_without_a_fast_form_are_not_asked(asked, monkeypatch):
    monkeypatch.setattr(conv_ffn, 'may_fuse_gelu', lambda x: False)
    ConvFFN(4, 8)(torch.randn(1, 4, 5, 6))
    assert not asked


@pytest.mark.parametrize('act_cfg', [dict(type='GELU', approximate='tanh'), dict(type='ReLU')])
def test_other_activations_are_operations_of_their_own(act_cfg, asked):
    ffn, x = ConvFFN(4, 8, act_cfg), torch.randn(1, 4, 5, 6)
    assert torch.equal(ffn(x), ffn.fc2(ffn.act(ffn.dwconv(ffn.fc1(x)))))
    assert not asked


@pytest.mark.parametrize('is_training', [True, False])
def test_an_adapter_needs_none_of_the_attributes_of_a_convolution(is_training):
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base

        def forward(self, x):
            return self.base_layer(x)

    ffn, x = ConvFFN(4, 8).train(is_training), torch.rand(1, 4, 5, 6)
    expected = ffn(x)
    for name in ('fc1', 'dwconv', 'fc2'):
        setattr(ffn, name, Adapter(getattr(ffn, name)))
    torch.testing.assert_close(ffn(x), expected)
