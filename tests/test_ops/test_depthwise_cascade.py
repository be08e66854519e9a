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
@kinds
def test_inference_equals_training(backend, kind):
    for size in [(8, 9), (1, 1), (2, 7)]:
        x, weights, biases, dilations = make(kind, 23, size=size)
        with use_backend(backend), torch.no_grad():
            out = depthwise_cascade(x, weights, biases, dilations)
        expected = with_gradients('plain', x, weights, biases, dilations)[0]
        assert relative_error(out, expected) <= 1e-12


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('in_group', [1, 500, 10**6])
def test_inference_by_groups_of_images_is_the_same(monkeypatch, in_group, layout):
    monkeypatch.setattr(onednn, 'IN_GROUP', in_group)
    x, weights, biases, dilations = make('LSKA', 23, size=(8, 9), batch=5)
    biases[1] = None
    x = x.contiguous(memory_format=layout)
    results = []
    for backend in ('plain', 'cpu'):
        with use_backend(backend), torch.no_grad():
            results.append(depthwise_cascade(x, weights, biases, dilations))
    assert relative_error(results[1], results[0]) <= 1e-12
    assert results[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    'size', [(1, 3, 70, 90), (3, 64, 17, 16), (2, 1, 130, 130), (1, 2**14, 1, 1)]
)
def test_turning_a_map_to_another_layout_and_back_moves_every_value_to_its_place(size, dtype):
    wide = torch.randn(2 * size[0], *size[1:]).to(dtype)
    # Its memory begins behind that of others, and does not end with it.
    for x in (wide[: size[0]], wide[size[0] :], wide[::2], wide[: size[0]].transpose(2, 3)):
        kept = x.clone()
        turned = onednn.to_channels_last(x)
        assert torch.equal(turned, x) and turned.is_contiguous(memory_format=torch.channels_last)
        back = onednn.in_layout(turned, torch.contiguous_format)
        assert torch.equal(back, x) and back.is_contiguous()
        assert torch.equal(onednn.in_layout(turned, torch.channels_last), x)
        assert torch.equal(x, kept)
        strided = turned[:, :, :, ::2]
        assert torch.equal(onednn.in_layout(strided, torch.contiguous_format), x[:, :, :, ::2])


def test_turning_a_map_can_be_differentiated():
    x = torch.randn(2, 8, 40, 50, requires_grad=True)
    grad = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad(onednn.to_channels_last(x), x, grad)[0], grad)


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
