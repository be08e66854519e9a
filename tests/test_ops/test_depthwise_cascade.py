import itertools

import pytest
import torch
import torch.nn.functional as F
from cascades import cast, make, relative_error, with_gradients
from torch import nn

from mmlska.ops import depthwise_cascade, use_backend
from mmlska.ops.depthwise_cascade import onednn

pytestmark = pytest.mark.usefixtures('rounding_of_a_gpu')

FAST = ['cpu']
KINDS = ['LSKA', 'LKA', 'LSKATrivial', 'LKATrivial', 'one row', 'dilated rows']
KERNEL_SIZES = [7, 11, 23, 35, 41, 53]
SIZES = [(25, 40), (13, 17), (5, 13), (3, 2), (1, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


fast_forms = pytest.mark.parametrize('backend', FAST)
kinds = pytest.mark.parametrize('kind', KINDS)


@fast_forms
@pytest.mark.parametrize(
    ('kind', 'kernel_size'),
    # Larger dense kernels take their time and no other path.
    [(kind, k) for kind in KINDS for k in KERNEL_SIZES if kind != 'LKATrivial' or k <= 23],
)
def test_equals_the_plain_form_with_all_gradients(backend, kind, kernel_size):
    for size, batch in itertools.product(SIZES, (1, 2)):
        call = make(kind, kernel_size, size=size, batch=batch)
        expected = with_gradients('plain', *call)
        for layout in LAYOUTS:
            found = with_gradients(backend, *call, layout=layout)
            single = with_gradients(backend, *cast(torch.float32, *call), layout=layout)
            for value, value32, truth in zip(found, single, expected, strict=True):
                assert relative_error(value, truth) <= 1e-12, (size, batch, layout)
                assert relative_error(value32, truth) <= 1e-5, (size, batch, layout)


@fast_forms
@pytest.mark.parametrize('kernel_size', [7, 23, 53])
def test_bf16_is_as_exact_as_the_plain_form(backend, kernel_size):
    for size in [(25, 40), (13, 17)]:
        call = make('LSKA', kernel_size, channels=16, size=size)
        truth = with_gradients('plain', *cast(torch.float64, *cast(torch.bfloat16, *call)))
        plain = with_gradients('plain', *cast(torch.bfloat16, *call))
        fast = with_gradients(backend, *cast(torch.bfloat16, *call))
        for value, reference, exact in zip(fast, plain, truth, strict=True):
            assert value.dtype == torch.bfloat16
            assert relative_error(value, exact) <= 1.5 * relative_error(reference, exact)


@fast_forms
@kinds
def test_inference_equals_training(backend, kind):
    for size in [(8, 9), (1, 1), (2, 7)]:
        x, weights, biases, dilations = make(kind, 23, size=size)
        with use_backend(backend), torch.no_grad():
            out = depthwise_cascade(x, weights, biases, dilations)
        expected = with_gradients('plain', x, weights, biases, dilations)[0]
        assert relative_error(out, expected) <= 1e-12


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('channels', [16, 17, 40])
def test_inference_by_slices_of_channels_is_the_same(monkeypatch, channels, layout):
    monkeypatch.setattr(onednn, 'IN_SLICE', 1)
    x, weights, biases, dilations = make('LSKA', 23, channels=channels, size=(8, 9))
    biases[1] = None
    x = x.contiguous(memory_format=layout)
    results = []
    for backend in ('plain', 'cpu'):
        with use_backend(backend), torch.no_grad():
            results.append(depthwise_cascade(x, weights, biases, dilations))
    assert relative_error(results[1], results[0]) <= 1e-12
    assert results[1].is_contiguous(memory_format=layout)


@fast_forms
def test_biases_may_be_absent(backend):
    x, weights, biases, dilations = make('LSKA', 23, size=(11, 10))
    biases = [biases[0], None, biases[2], None]
    leaves = [weights[1].requires_grad_(), biases[2].requires_grad_()]
    results = []
    for name in (backend, 'plain'):
        with use_backend(name):
            out = depthwise_cascade(x, weights, biases, dilations)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) <= 1e-12


@fast_forms
@kinds
def test_frozen_parameters_take_no_gradients_and_change_no_others(backend, kind):
    x, weights, biases, dilations = make(kind, 11, size=(7, 8))
    tensors = [x, *weights, *biases]
    complete = with_gradients('plain', x, weights, biases, dilations)[1:]
    for trained in range(len(tensors)):
        leaves = [t.detach().clone().requires_grad_(i == trained) for i, t in enumerate(tensors)]
        with use_backend(backend):
            out = depthwise_cascade(
                leaves[0], leaves[1 : 1 + len(weights)], leaves[1 + len(weights) :], dilations
            )
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        out.backward(grad)
        assert [leaf.grad is not None for leaf in leaves] == [
            i == trained for i in range(len(tensors))
        ]
        assert relative_error(leaves[trained].grad, complete[trained]) <= 1e-12


@fast_forms
@pytest.mark.parametrize('kind', ['LSKA', 'LKA'])
def test_gradients_of_gradients(backend, kind):
    x, weights, biases, dilations = make(kind, 7, channels=2, size=(5, 4), batch=1)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def run(x, *parameters):
        number = len(weights)
        with use_backend(backend):
            return depthwise_cascade(x, parameters[:number], parameters[number:], dilations)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@fast_forms
@pytest.mark.parametrize('layout', LAYOUTS)
def test_keeps_the_layout_and_leaves_its_inputs_alone(backend, layout):
    x, weights, biases, dilations = make('LSKA', 23, channels=4, size=(10, 9))
    x = x.contiguous(memory_format=layout).requires_grad_()
    kept = [t.detach().clone() for t in (x, *weights, *biases)]
    with use_backend(backend):
        out = depthwise_cascade(x, weights, biases, dilations)
    grad = torch.randn_like(out)
    kept_grad = grad.clone()
    (for_input,) = torch.autograd.grad(out, x, grad)
    assert out.is_contiguous(memory_format=layout)
    assert for_input.is_contiguous(memory_format=layout)
    assert torch.equal(grad, kept_grad)
    assert all(map(torch.equal, (x, *weights, *biases), kept))


@fast_forms
def test_takes_maps_and_gradients_that_lie_anyhow_in_memory(backend):
    x, weights, biases, dilations = make('LSKA', 23, size=(20, 18))
    expected = with_gradients('plain', x[:, :, ::2, 1::2], weights, biases, dilations)
    leaf = x.requires_grad_()
    with use_backend(backend):
        out = depthwise_cascade(leaf[:, :, ::2, 1::2], weights, biases, dilations)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    turned = grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    (found,) = torch.autograd.grad(out, leaf, turned)
    assert relative_error(out.detach(), expected[0]) <= 1e-12
    assert relative_error(found[:, :, ::2, 1::2], expected[1]) <= 1e-12


@fast_forms
def test_recomputed_activations_give_the_same_gradients(backend):
    x, weights, biases, dilations = make('LSKA', 23, size=(10, 9))
    weights = [weight.requires_grad_() for weight in weights]

    def run(x):
        return depthwise_cascade(x, weights, biases, dilations)

    with use_backend(backend):
        again = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)
        found = torch.autograd.grad(again.square().sum(), weights)
        expected = torch.autograd.grad(run(x).square().sum(), weights)
    assert all(map(torch.equal, found, expected))


def test_a_dense_kernel_in_place_of_two_is_wrong_at_the_border():
    # 1x5, then 1x7 with dilation 3, sees 23 positions, but what it sees of the padding was zeroed
    # in between. So the product of the two kernels, a single 1x23, is right only inside.
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 64, dtype=torch.float64)
    local = torch.randn(4, 1, 1, 5, dtype=torch.float64)
    dilated = torch.randn(4, 1, 1, 7, dtype=torch.float64)
    spread = torch.zeros(4, 1, 1, 19, dtype=torch.float64)
    spread[..., ::3] = dilated
    # The kernel of two correlations one after the other is the convolution of both.
    dense = F.conv1d(
        spread[:, :, 0].transpose(0, 1), local[:, :, 0].flip(-1), padding=4, groups=4
    ).transpose(0, 1)[:, :, None]
    both = depthwise_cascade(x, [local, dilated], [None, None], [1, 3])
    merged = depthwise_cascade(x, [dense], [None], [1])
    error = (both - merged).abs().amax((0, 1, 2))
    assert error[9:-9].max() < 1e-12
    assert error[:9].max() > 0.1
    assert error[-9:].max() > 0.1


def test_is_a_chain_of_same_padded_convolutions():
    x, weights, biases, dilations = make('LSKA', 23, size=(9, 8))
    expected = x
    for weight, bias, dilation in zip(weights, biases, dilations, strict=True):
        conv = nn.Conv2d(
            3, 3, weight.shape[2:], padding='same', dilation=dilation, groups=3, dtype=x.dtype
        )
        conv.load_state_dict(dict(weight=weight, bias=bias))
        expected = conv(expected)
    for backend in ('plain', *FAST):
        with use_backend(backend):
            found = depthwise_cascade(x, weights, biases, dilations)
        assert relative_error(found, expected) <= 1e-12
