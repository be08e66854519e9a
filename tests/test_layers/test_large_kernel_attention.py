import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch_versions import compiles

from mmlska.layers import LKA, LSKA, LKATrivial, LSKATrivial, decompose_kernel
from mmlska.ops import record_choices, use_backend

KINDS = [LKA, LSKA, LKATrivial, LSKATrivial]


def is_legal(kernel_size, dilation=None):
    try:
        decompose_kernel(kernel_size, dilation)
    except ValueError:
        return False
    return True


LEGAL = [k for k in range(3, 66) if is_legal(k)]


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ('kernel_size', 'expected'),
    # Section V-A of arXiv 2309.01439 and the table of the official code.
    [
        (7, (3, 3, 2)),
        (11, (3, 5, 2)),
        (23, (5, 7, 3)),
        (35, (5, 11, 3)),
        (41, (5, 13, 3)),
        (53, (5, 17, 3)),
        (65, (5, 21, 3)),
    ],
)
def test_decomposition_is_the_published_one(kernel_size, expected):
    assert decompose_kernel(kernel_size) == expected


def test_a_kernel_is_legal_exactly_when_the_receptive_field_is_it_and_centred():
    for k, d in itertools.product(range(1, 100), range(1, 8)):
        fits = any((2 * d - 1) + d * (n - 1) == k for n in range(1, k + 1, 2))
        assert is_legal(k, d) == fits, (k, d)


@pytest.mark.parametrize(
    ('kernel_size', 'nearest'),
    [
        (24, '23 and 29'),
        (21, '19 and 23'),
        (22, '19 and 23'),
        (1, '3'),
        (2, '3'),
        (64, '59 and 65'),
    ],
)
def test_an_illegal_kernel_names_the_nearest_legal_ones(kernel_size, nearest):
    with pytest.raises(ValueError, match=f'kernel_size={kernel_size} .*{nearest}'):
        LSKA(8, kernel_size)


def test_the_nearest_kernel_respects_a_given_dilation():
    with pytest.raises(ValueError, match=r'dilation=4 .* 15 and 23'):
        LKA(8, 17, dilation=4)


@pytest.mark.parametrize('value', [0, -7, 7.0, '7', None, True])
def test_a_kernel_that_is_no_positive_integer_is_refused(value):
    with pytest.raises(ValueError, match='kernel_size must be a positive integer'):
        decompose_kernel(value)


@pytest.mark.parametrize('kind', [LKATrivial, LSKATrivial])
def test_an_even_trivial_kernel_names_its_neighbours(kind):
    with pytest.raises(ValueError, match=r'kernel_size=22 .*21 and 23'):
        kind(8, 22)


@pytest.mark.parametrize('kind', KINDS)
def test_in_channels_must_be_positive(kind):
    with pytest.raises(ValueError, match='in_channels must be a positive integer, but got 0'):
        kind(0)


@pytest.mark.parametrize(
    ('kind', 'name', 'options'),
    [
        (LKA, 'lka_d8', dict(kernel_size=23)),
        (LSKA, 'lska_k11_d8', dict(kernel_size=11)),
        (LSKA, 'lska_k23_d8', dict(kernel_size=23)),
        (LSKA, 'lska_k35_d8', dict(kernel_size=35)),
    ],
)
def test_equals_the_official_layer(golden, kind, name, options):
    state, tensors = golden(f'a_lska/{name}')
    x, expected = tensors['input'], tensors['out_f64']
    layer = kind(8, **options)
    layer.load_state_dict(state)
    assert relative_error(layer(x.float()), expected) < 1e-5
    assert relative_error(layer.double()(x.double()), expected) < 1e-12


def test_lska_takes_the_names_of_the_official_detection_code():
    source, target = LSKA(4, 11), LSKA(4, 11)
    names = {
        'conv0h': 'DW_conv_h',
        'conv0v': 'DW_conv_v',
        'conv_spatial_h': 'DW_D_conv_h',
        'conv_spatial_v': 'DW_D_conv_v',
        'conv1': 'conv1',
    }
    state = {
        f'{names[key.split(".")[0]]}.{key.split(".")[1]}': value
        for key, value in source.state_dict().items()
    }
    target.load_state_dict(state)
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(source(x), target(x))


def explicit(layer, x):
    """The equation of each kind from the weights alone, by cross-correlation with padded maps."""

    def conv(x, weight, bias, dilation):
        reach = [d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
        out = bias[None, :, None, None].expand(*x.shape).clone()
        for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
            rows = slice(i * dilation[0], i * dilation[0] + x.shape[2])
            columns = slice(j * dilation[1], j * dilation[1] + x.shape[3])
            out = out + weight[None, :, 0, i, j, None, None] * padded[:, :, rows, columns]
        return out

    names = {
        LKA: ['conv0', 'conv_spatial'],
        LSKA: ['conv0h', 'conv0v', 'conv_spatial_h', 'conv_spatial_v'],
        LKATrivial: ['conv0'],
        LSKATrivial: ['conv0h', 'conv0v'],
    }[type(layer)]
    attention = x
    for name in names:
        module = getattr(layer, name)
        attention = conv(attention, module.weight, module.bias, module.dilation)
    mixed = torch.einsum('oc,nchw->nohw', layer.conv1.weight[:, :, 0, 0], attention)
    return x * (mixed + layer.conv1.bias[None, :, None, None])


def randomised(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.double()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [(1, 1), (3, 2), (1, 17), (13, 17)])
@pytest.mark.parametrize('kernel_size', [7, 11, 23])
def test_equals_its_equation(kind, size, kernel_size):
    torch.manual_seed(0)
    layer = randomised(kind(3, kernel_size))
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    assert relative_error(layer(x), explicit(layer, x)) < 1e-12


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('kernel_size', LEGAL)
def test_the_gradient_footprint_of_a_pixel_is_exactly_the_kernel(kind, kernel_size):
    layer = kind(1, kernel_size).double()
    for parameter in layer.parameters():
        # Positive weights everywhere: no contribution can cancel another.
        torch.nn.init.constant_(parameter, 0.1)
    size = kernel_size + 4
    x = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    centre = size // 2
    layer(x)[0, 0, centre, centre].backward()
    rows, columns = torch.nonzero(x.grad[0, 0], as_tuple=True)
    reach = kernel_size // 2
    assert (rows.min(), rows.max()) == (centre - reach, centre + reach)
    assert (columns.min(), columns.max()) == (centre - reach, centre + reach)
    assert len(rows) == kernel_size**2


def test_every_legal_size_of_the_paper_is_among_the_footprints():
    assert {7, 11, 23, 35, 53, 65} <= set(LEGAL)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients(kind):
    torch.manual_seed(0)
    layer = randomised(kind(2, 7))
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize('kind', KINDS)
def test_the_input_is_left_as_it_was(kind):
    x = torch.randn(2, 4, 6, 5)
    kept = x.clone()
    kind(4, 7)(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize('kind', KINDS)
def test_state_dict_round_trip(kind):
    source, target = kind(4, 11), kind(4, 11)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 4, 9, 7)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize('kind', KINDS)
def test_initialisation_is_the_official_one(kind):
    torch.manual_seed(0)
    layer = kind(512, 23)
    for conv in layer.children():
        fan_out = conv.weight[0, 0].numel() * (1 if conv.groups > 1 else conv.out_channels)
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert not conv.bias.any()


@pytest.mark.parametrize('kind', KINDS)
def test_bf16_autocast_stays_near_float32(kind):
    torch.manual_seed(0)
    layer = kind(8, 23)
    x = torch.randn(2, 8, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert relative_error(out.float(), layer(x)) < 3e-2
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@compiles
@pytest.mark.parametrize('kind', KINDS)
def test_exports_and_compiles(kind):
    layer = kind(4, 11).eval()
    x = torch.randn(1, 4, 10, 12)
    exported = torch.export.export(layer, (x,)).module()
    compiled = torch.compile(layer, backend='eager', fullgraph=True)
    assert torch.allclose(exported(x), layer(x))
    assert torch.allclose(compiled(x), layer(x))


def depthwise_names(layer):
    return [name for name, _ in layer.named_children() if name != 'conv1']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('hook', ['forward_hook', 'forward_pre_hook', 'full_backward_hook'])
@pytest.mark.parametrize('backend', ['auto', 'cpu'])
def test_hooks_on_the_convolutions_inside_are_called(kind, hook, backend):
    layer, x = kind(4, 11), torch.randn(1, 4, 8, 9, requires_grad=True)
    expected = layer(x)
    for name in [*depthwise_names(layer), 'conv1']:
        called = []
        handle = getattr(getattr(layer, name), f'register_{hook}')(
            lambda *args, called=called: called.append(args) or None
        )
        with use_backend(backend):
            out = layer(x)
            out.sum().backward()
        handle.remove()
        assert len(called) == 1, name
        assert torch.allclose(out, expected, atol=1e-6)


def test_hooks_on_all_modules_are_called():
    layer, seen = LSKA(4, 11), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    layer(torch.randn(1, 4, 8, 9))
    handle.remove()
    assert seen == ['Conv2d'] * 5 + ['LSKA']


@pytest.mark.parametrize('kind', KINDS)
def test_a_convolution_inside_that_was_replaced_does_its_own(kind):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, x = kind(4, 11), torch.randn(1, 4, 8, 9)
    expected = randomised(layer).float()
    name = depthwise_names(layer)[-1]
    old = getattr(layer, name)
    new = Doubled(4, 4, old.kernel_size, 1, old.padding, old.dilation, 4)
    new.load_state_dict(old.state_dict())
    doubled_by_weights = randomised(kind(4, 11)).float()
    doubled_by_weights.load_state_dict(expected.state_dict())
    for parameter in getattr(doubled_by_weights, name).parameters():
        parameter.data *= 2
    setattr(layer, name, new)
    assert torch.allclose(layer(x), doubled_by_weights(x), atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', ['auto', 'cpu'])
@pytest.mark.parametrize(
    'mix',
    [
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1), padding_mode='circular'),
        nn.Conv2d(4, 1, 1),
        nn.Identity(),
    ],
)
def test_a_1x1_convolution_that_was_replaced_does_its_own(kind, backend, mix):
    layer, x = kind(4, 11), torch.randn(1, 4, 8, 9)
    weight = layer.conv1.weight
    # The check of the map asks a weight for its dtype.
    layer.conv1 = mix if isinstance(mix, nn.Conv2d) else Unchanged(weight)
    expected = x
    for conv in layer.depthwise_convs():
        expected = conv(expected)
    with use_backend(backend):
        assert torch.allclose(layer(x), x * layer.conv1(expected), atol=1e-5)


class Unchanged(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x


@pytest.mark.parametrize('kind', KINDS)
def test_the_whole_layer_is_one_operation(kind):
    layer, x = kind(4, 11), torch.randn(1, 4, 8, 9)
    with use_backend('cpu'), record_choices() as choices:
        layer(x)
    assert [(choice.operation, choice.form) for choice in choices] == [
        ('large_kernel_attention', 'cpu')
    ]


@pytest.mark.parametrize('kind', KINDS)
def test_can_be_traced_symbolically(kind):
    layer, x = kind(4, 11), torch.randn(1, 4, 8, 9)
    assert torch.allclose(symbolic_trace(layer)(x), layer(x), atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', ['plain', 'cpu'])
def test_every_form_of_the_operation_trains_the_layer_alike(kind, backend):
    torch.manual_seed(0)
    layer = randomised(kind(3, 23))
    x = torch.randn(2, 3, 10, 9, dtype=torch.float64)
    explicit(layer, x).square().sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    with use_backend(backend):
        layer(x).square().sum().backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        assert relative_error(parameter.grad, grad) < 1e-12
