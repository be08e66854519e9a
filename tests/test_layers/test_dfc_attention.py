import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlska.layers import DFCAttention
from mmlska.layers.dfc_attention import DFCGate

SIZES = [(6, 8), (5, 8), (7, 9), (2, 2), (3, 1), (1, 1), (1, 12), (13, 1)]


def randomised(module, seed=0):
    """Far from the initial values, so that every parameter and statistic matters."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.abs_().add_(0.5)
    return module.double().eval()


def explicit_gate(gate, x, cell=2):
    """The equation from the weights alone, cell by cell."""

    def norm(x, layer):
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[
            :, None, None
        ]

    height, width = x.shape[2:]
    rows, columns = max(1, height // cell), max(1, width // cell)
    tall, wide = min(cell, height), min(cell, width)
    cells = torch.stack(
        [
            torch.stack(
                [
                    x[..., i * tall : (i + 1) * tall, j * wide : (j + 1) * wide].mean((2, 3))
                    for j in range(columns)
                ],
                -1,
            )
            for i in range(rows)
        ],
        -2,
    )
    out = norm(torch.einsum('oc,nchw->nohw', gate[0].weight[:, :, 0, 0], cells), gate[1])
    for conv, layer in ((gate[2], gate[3]), (gate[4], gate[5])):
        kernel = conv.weight[:, 0]
        reach = [(side - 1) // 2 for side in kernel.shape[1:]]
        padded = F.pad(out, (reach[1], reach[1], reach[0], reach[0]))
        out = sum(
            kernel[:, i, j, None, None] * padded[..., i : i + rows, j : j + columns]
            for i in range(kernel.shape[1])
            for j in range(kernel.shape[2])
        )
        out = norm(out, layer)
    out = 1 / (1 + torch.exp(-out))
    nearest = [
        [int(i * cells_ / side) for i in range(side)]
        for cells_, side in ((rows, height), (columns, width))
    ]
    return out[..., nearest[0], :][..., nearest[1]]


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('size', SIZES)
def test_equals_its_equation(size, kernel_size):
    layer = randomised(DFCAttention(3, kernel_size))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = x * explicit_gate(layer.short_conv, x)
    assert torch.allclose(layer(x), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('size', [(6, 8), (5, 8), (7, 9), (3, 2)])
def test_equals_the_official_operations_where_they_run(size):
    gate = randomised(DFCGate(4, 6))
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    official = nn.Sequential.forward(gate, F.avg_pool2d(x, kernel_size=2, stride=2))
    official = F.interpolate(torch.sigmoid(official), size=size, mode='nearest')
    assert torch.equal(gate(x), official)


def test_the_names_are_the_official_ones():
    official = {f'short_conv.{i}.weight' for i in range(6)}
    official |= {
        f'short_conv.{i}.{key}'
        for i in (1, 3, 5)
        for key in ('bias', 'running_mean', 'running_var', 'num_batches_tracked')
    }
    assert set(DFCAttention(4).state_dict()) == official


def test_a_constant_gate_scales_the_map():
    layer = randomised(DFCAttention(3))
    nn.init.zeros_(layer.short_conv[5].weight)
    x = torch.randn(1, 3, 9, 6, dtype=torch.float64)
    scale = layer.short_conv[5].bias.sigmoid()[:, None, None]
    assert torch.allclose(layer(x), x * scale)


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_a_cell_sees_kernel_size_cells_each_way(kernel_size):
    gate = DFCGate(1, 1, kernel_size).double().eval()
    for conv in (gate[0], gate[2], gate[4]):
        # Positive weights everywhere: no contribution can cancel another.
        nn.init.constant_(conv.weight, 0.1)
    x = torch.ones(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    gate(x)[0, 0, 16, 16].backward()
    rows, columns = torch.nonzero(x.grad[0, 0], as_tuple=True)
    first, last = 16 - 2 * (kernel_size // 2), 17 + 2 * (kernel_size // 2)
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (first, last)
    assert len(rows) == (2 * kernel_size) ** 2


@pytest.mark.parametrize('size', [(4, 6), (1, 3), (6, 1)])
def test_dilated_cells_cover_the_same_part_of_a_finer_map(size):
    gate, dilated = randomised(DFCGate(3, 5)), randomised(DFCGate(3, 5, dilation=2))
    x = torch.randn(1, 3, *size, dtype=torch.float64)

    def finer(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    assert torch.allclose(dilated(finer(x)), finer(gate(x)), rtol=1e-12)


@pytest.mark.parametrize(
    ('kernel_size', 'message'),
    [
        (4, 'kernel_size=4 .*3 and 5'),
        (22, 'kernel_size=22 .*21 and 23'),
        (0, 'kernel_size must be a positive integer, but got 0'),
        (5.0, 'kernel_size must be a positive integer, but got 5.0'),
    ],
)
def test_a_kernel_without_a_centre_is_refused(kernel_size, message):
    with pytest.raises(ValueError, match=message):
        DFCAttention(8, kernel_size)


def test_in_channels_must_be_positive():
    with pytest.raises(ValueError, match='in_channels must be a positive integer, but got 0'):
        DFCAttention(0)


@pytest.mark.parametrize('size', [(4, 5), (1, 3)])
def test_gradients(size):
    layer = randomised(DFCAttention(2, 3))
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_every_parameter_learns_and_the_input_is_left_as_it_was():
    layer = DFCAttention(4)
    x = torch.randn(2, 4, 6, 5)
    kept = x.clone()
    layer(x).square().sum().backward()
    assert torch.equal(x, kept)
    assert all(parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize('size', [(1, 1), (2, 2), (1, 3), (3, 3)])
def test_a_batch_of_a_single_cell_trains_by_the_running_statistics(size):
    layer = randomised(DFCAttention(4))
    x = torch.randn(1, 4, *size, dtype=torch.float64)
    expected = layer(x)
    kept = {key: value.clone() for key, value in layer.state_dict().items()}
    out = layer.train()(x)
    assert torch.allclose(out, expected)
    assert all(torch.equal(value, kept[key]) for key, value in layer.state_dict().items())


def test_other_norms_work():
    layer = DFCAttention(4, norm_cfg=dict(type='GN', num_groups=2))
    assert layer(torch.randn(1, 4, 1, 1)).shape == (1, 4, 1, 1)
