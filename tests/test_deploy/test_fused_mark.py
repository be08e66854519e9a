import pytest
import torch
from fusing_laws import trained
from torch import nn

from mmlska.deploy import fuse, is_fused
from mmlska.models import ECA


def fused():
    return fuse(trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), ECA(8))))


def test_a_fused_model_stays_in_evaluation_mode():
    model = fused()
    assert model.eval() is model and model.train(False) is model
    with pytest.raises(RuntimeError, match=r'cannot be trained.*given to fuse\(\)'):
        model.train()
    with pytest.raises(RuntimeError, match='cannot be trained'):
        nn.Sequential(model).train()
    assert not any(module.training for module in model.modules())


def test_a_fused_model_has_no_gradients_to_train_with():
    loss = fused()(torch.randn(1, 3, 6, 6)).sum()
    with pytest.raises(RuntimeError, match='does not require grad'):
        loss.backward()


def test_a_fused_model_is_of_the_class_that_it_was_and_says_that_it_is_fused():
    model = fused()
    assert isinstance(model, nn.Sequential)
    assert 'fused' in repr(model) and 'fused' not in repr(nn.Sequential(nn.ReLU()))
    assert is_fused(model) and is_fused(nn.Sequential(model)) and not is_fused(model[0])


def test_gradients_of_the_input_are_those_of_the_model():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), ECA(8))).double()
    grads = []
    for form in (model, fuse(model)):
        x = torch.linspace(-1, 1, 108, dtype=torch.float64).view(1, 3, 6, 6).requires_grad_()
        form(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-12)
