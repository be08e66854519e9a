import pytest
import torch
import torch.nn.functional as F

from mmlska.models.layers import ConvFFN


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
