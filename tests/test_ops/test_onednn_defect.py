"""PyTorch's weight gradients of tall kernels on the CPU, and ours, against float64."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from cascades import cast, relative_error, with_gradients

from mmlska.layers import LSKA, DFCAttention, LSKATrivial
from mmlska.ops import depthwise_cascade, onednn_defect, use_backend

SIZES = [(64, 8), (61, 3), (200, 1), (50, 50), (8, 64), (1, 61)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
KERNEL_SIZES = range(3, 66, 2)


def make(kernels, size, channels=3):
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weights = [torch.randn(channels, 1, *k, dtype=x.dtype) / (k[0] * k[1]) ** 0.5 for k in kernels]
    return x, weights, [torch.randn(channels, dtype=x.dtype) for _ in kernels], [1] * len(kernels)


@pytest.mark.parametrize('backend', ['plain', 'auto', 'cpu'])
@pytest.mark.parametrize('kernel_size', KERNEL_SIZES)
def test_all_gradients_are_right_for_every_kernel_on_every_map(kernel_size, backend):
    for size, layout in itertools.product(SIZES, LAYOUTS):
        call = make([(1, kernel_size), (kernel_size, 1)], size)
        expected = with_gradients('plain', *call)
        found = with_gradients(backend, *cast(torch.float32, *call), layout=layout)
        for value, truth in zip(found, expected, strict=True):
            assert relative_error(value, truth) <= 1e-5, (size, layout)
        assert found[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize('kernel', [(47, 1), (47, 3), (33, 3), (47, 5), (47, 47)])
def test_wider_kernels_are_right_too(kernel):
    call = make([kernel], (61, 48))
    expected = with_gradients('plain', *call)
    found = with_gradients('plain', *cast(torch.float32, *call))
    for value, truth in zip(found, expected, strict=True):
        assert relative_error(value, truth) <= 1e-5


def test_bfloat16_is_as_right_as_bfloat16_can_be():
    call = make([(47, 1)], (64, 8))
    rounded = cast(torch.float64, *cast(torch.bfloat16, *call))
    expected = with_gradients('plain', *rounded)
    found = with_gradients('plain', *cast(torch.bfloat16, *call))
    for value, truth in zip(found, expected, strict=True):
        assert relative_error(value, truth) <= 3e-2


def weight_gradient(convolve, weight, *sources):
    """Gradient of a weight for a fixed random loss; ``convolve`` takes it and the sources."""
    leaf = weight.detach().clone().requires_grad_()
    out = convolve(leaf, *sources)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad(out, leaf, grad.to(out))[0]


def test_this_version_of_pytorch_is_compared_with_ours(record_property):
    """Warns where PyTorch's own gradients are right: then the way around can go."""

    def by_pytorch(weight, x):
        return F.conv2d(x, weight, padding=(weight.shape[2] // 2, 0), groups=len(weight))

    def by_ours(weight, x):
        with use_backend('plain'):
            return depthwise_cascade(x, [weight], [None], [1])

    wrong = []
    for kernel_size, size in itertools.product((33, 41, 47, 61, 65), SIZES[:4]):
        x, (weight,), _, _ = make([(kernel_size, 1)], size)
        truth = weight_gradient(by_pytorch, weight, x)
        single = weight.float(), x.float()
        if relative_error(weight_gradient(by_pytorch, *single), truth) > 1e-3:
            wrong.append((kernel_size, size))
        assert relative_error(weight_gradient(by_ours, *single), truth) <= 1e-5
    record_property('wrong_in_pytorch', str(wrong))
    if not wrong:
        warnings.warn(
            f'PyTorch {torch.__version__} computes the weight gradients of tall kernels rightly: '
            'mmlska/ops/onednn_defect.py is needed for older versions only',
            stacklevel=1,
        )


@pytest.mark.parametrize('layer', [lambda: LSKATrivial(3, 47), lambda: LSKA(3, 47, dilation=1)])
@pytest.mark.parametrize('observer', ['nobody', 'hook', 'plain', 'trace'])
def test_layers_train_rightly_whoever_looks(layer, observer):
    torch.manual_seed(0)
    layer, x = layer(), torch.randn(2, 3, 64, 8)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def gradients(model, x):
        parameters = list(model.parameters())
        return torch.autograd.grad(model(x).square().mean(), parameters)

    expected = gradients(layer.double(), x.double())
    model = layer.float()
    if observer == 'hook':
        for conv in layer.depthwise_convs():
            conv.register_forward_hook(lambda *_: None)
    if observer == 'trace':
        model = torch.jit.trace(layer, x)
    with use_backend('plain' if observer == 'plain' else 'auto'):
        found = gradients(model, x)
    for value, truth in zip(found, expected, strict=True):
        assert relative_error(value, truth) <= 1e-4


def test_a_long_kernel_of_dfc_attention_trains_rightly():
    torch.manual_seed(0)
    layer, x = DFCAttention(3, 47).eval(), torch.randn(2, 3, 128, 16)
    conv = layer.short_conv[4]
    assert conv.kernel_size == (47, 1)
    (expected,) = torch.autograd.grad(layer.double()(x.double()).square().mean(), conv.weight)
    (found,) = torch.autograd.grad(layer.float()(x).square().mean(), conv.weight)
    assert relative_error(found, expected) <= 1e-4


def test_gradients_of_each_sample_are_right():
    x, (weight,), (bias,), _ = make([(47, 1)], (64, 8))
    samples = torch.stack([x, x.flip(2), x.flip(3)])

    def loss(weight, x, bias):
        return depthwise_cascade(x, [weight], [bias], [1]).square().mean()

    def of_each(weight, samples, bias):
        return torch.func.vmap(torch.func.grad(loss), (None, 0, None))(weight, samples, bias)

    found = of_each(weight.float(), samples.float(), bias.float())
    assert relative_error(found, of_each(weight, samples, bias)) <= 1e-5


def test_a_map_without_batch_axis_is_right():
    x, (weight,), _, _ = make([(47, 1)], (64, 8))

    def convolve(weight, x):
        return depthwise_cascade(x[0], [weight], [None], [1])

    truth = weight_gradient(convolve, weight, x)
    assert relative_error(weight_gradient(convolve, weight.float(), x.float()), truth) <= 1e-5


def test_what_is_right_in_pytorch_is_left_to_it():
    tall, short = torch.ones(2, 1, 47, 1, requires_grad=True), torch.ones(2, 1, 31, 1)
    assert onednn_defect.is_affected((47, 1), tall, 1)
    assert not onednn_defect.is_affected((47, 1), tall, 2)
    assert not onednn_defect.is_affected((47, 1), tall.double(), 1)
    assert not onednn_defect.is_affected((47, 1), tall.detach(), 1)
    assert not onednn_defect.is_affected((31, 1), short.requires_grad_(), 1)
    with torch.no_grad():
        assert not onednn_defect.is_affected((47, 1), tall, 1)
