import math

import pytest
import torch
from torch import nn

from mmlska.layers import MixedAffinity


def randomised(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double()


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def pointwise(conv, tokens):
    """A 1x1 convolution as a matrix, of tokens ``(N, positions, C)``."""
    return tokens @ conv.weight[:, :, 0, 0].T + conv.bias


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def map_of(tokens, like):
    return tokens.transpose(1, 2).reshape(like.shape)


# The three affinities of the paper's unified view, as matrices written down one entry at a time.


def attention_matrix(layer, x):
    """``softmax(q k / sqrt(d))`` for every head, ``(N, heads, positions, positions)``."""
    channels = x.shape[1]
    width = channels // layer.num_heads
    query, key, _ = pointwise(layer.conv1, tokens_of(x)).split(channels, dim=2)
    rows = []
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        products = torch.einsum('npc,nqc->npq', query[..., part], key[..., part])
        weights = torch.exp(products / math.sqrt(width))
        rows.append(weights / weights.sum(-1, keepdim=True))
    return torch.stack(rows, 1)


def convolution_matrix(kernel, height, width):
    """The sparse matrix of a depth-wise kernel ``(C, k, k)``, ``(C, positions, positions)``."""
    channels, reach = kernel.shape[0], kernel.shape[1] // 2
    matrix = torch.zeros(channels, height * width, height * width, dtype=kernel.dtype)
    for i in range(height):
        for j in range(width):
            for k in range(max(0, i - reach), min(height, i + reach + 1)):
                for m in range(max(0, j - reach), min(width, j + reach + 1)):
                    matrix[:, i * width + j, k * width + m] = kernel[
                        :, k - i + reach, m - j + reach
                    ]
    return matrix


def explicit(layer, x, alpha, beta):
    """``((alpha A(x) + beta A) V) W + x`` with both matrices."""
    channels, height, width = x.shape[1:]
    value = pointwise(layer.conv1, tokens_of(x))[..., 2 * channels :]
    dynamic = attention_matrix(layer, x).repeat_interleave(channels // layer.num_heads, dim=1)
    static = convolution_matrix(layer.conv.weight[:, 0], height, width)
    mixed = torch.einsum('ncpq,nqc->npc', alpha * dynamic + beta * static, value)
    return x + map_of(pointwise(layer.conv2, mixed + beta * layer.conv.bias), x)


@pytest.mark.parametrize('size', [(4, 5), (1, 1), (1, 6), (7, 1)])
@pytest.mark.parametrize(('num_heads', 'kernel_size'), [(1, 3), (2, 5), (6, 1)])
def test_equals_its_equation(size, num_heads, kernel_size):
    torch.manual_seed(0)
    layer = randomised(MixedAffinity(6, num_heads, kernel_size))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = explicit(layer, x, layer.alpha, layer.beta)
    assert relative_error(layer(x), expected) < 1e-12


def test_without_the_dynamic_part_it_is_a_convolution_block():
    torch.manual_seed(0)
    layer = randomised(MixedAffinity(8, 4, 3))
    nn.init.zeros_(layer.alpha)
    nn.init.ones_(layer.beta)
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    value = nn.functional.conv2d(x, layer.conv1.weight[16:], layer.conv1.bias[16:])
    expected = x + layer.conv2(layer.conv(value))
    assert relative_error(layer(x), expected) < 1e-12
    # It sees no further than its kernel.
    x.requires_grad_()
    layer(x)[0, 0, 3, 3].backward()
    rows, columns = torch.nonzero(x.grad[0].abs().sum(0), as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)


def test_without_the_static_part_it_is_self_attention():
    torch.manual_seed(0)
    layer = randomised(MixedAffinity(8, 4))
    nn.init.ones_(layer.alpha)
    nn.init.zeros_(layer.beta)
    reference = nn.MultiheadAttention(8, 4, batch_first=True).double()
    reference.in_proj_weight.data = layer.conv1.weight[:, :, 0, 0].data
    reference.in_proj_bias.data = layer.conv1.bias.data
    reference.out_proj.weight.data = layer.conv2.weight[:, :, 0, 0].data
    reference.out_proj.bias.data = layer.conv2.bias.data
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    tokens = tokens_of(x)
    assert relative_error(layer(x), x + map_of(reference(tokens, tokens, tokens)[0], x)) < 1e-12
    # It knows no order of positions.
    order = torch.randperm(30)
    shuffled = map_of(tokens[:, order], x)
    assert torch.allclose(tokens_of(layer(shuffled)), tokens_of(layer(x))[:, order])


def test_with_a_kernel_that_covers_the_map_the_static_part_is_an_mlp_mixer():
    torch.manual_seed(0)
    height, width = 3, 4
    layer = randomised(MixedAffinity(4, 2, kernel_size=7))
    layer.conv.weight.data[:] = layer.conv.weight[:1]
    nn.init.zeros_(layer.alpha)
    nn.init.ones_(layer.beta)
    nn.init.zeros_(layer.conv.bias)
    dense = convolution_matrix(layer.conv.weight[:1, 0], height, width)[0]
    assert dense.all()
    mixer = nn.Linear(height * width, height * width, bias=False).double()
    mixer.weight.data = dense
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    value = pointwise(layer.conv1, tokens_of(x))[..., 8:]
    mixed = mixer(value.transpose(1, 2)).transpose(1, 2)
    assert relative_error(layer(x), x + map_of(pointwise(layer.conv2, mixed), x)) < 1e-12


def test_the_affinities_are_those_matrices():
    torch.manual_seed(0)
    layer = randomised(MixedAffinity(6, 3))
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    dynamic = layer.dynamic_affinity(x)
    assert torch.allclose(dynamic, attention_matrix(layer, x))
    assert torch.allclose(dynamic.sum(-1), torch.ones(2, 3, 20, dtype=torch.float64))
    static = convolution_matrix(layer.conv.weight[:, 0], 4, 5)
    assert torch.equal(layer.static_affinity(4, 5), static)
    assert (static == 0).any()


def test_rows_of_the_dynamic_affinity_sum_to_one():
    # So equal values stay what they are, whatever the queries and keys.
    torch.manual_seed(0)
    layer = randomised(MixedAffinity(8, 2))
    nn.init.zeros_(layer.beta)
    nn.init.ones_(layer.alpha)
    nn.init.zeros_(layer.conv1.weight[16:])
    x = torch.randn(1, 8, 9, 5, dtype=torch.float64) * 10
    constant = layer.conv1.bias[16:]
    expected = layer.conv2.weight[:, :, 0, 0] @ constant + layer.conv2.bias
    assert torch.allclose(layer(x) - x, expected[None, :, None, None].expand(x.shape))


def test_the_scalars_start_at_one_half_and_learn():
    layer = MixedAffinity(8)
    assert layer.alpha.item() == layer.beta.item() == 0.5
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_takes_the_official_weights(golden):
    state, tensors = golden('g_container/mixblock_d16_h4')
    layer = MixedAffinity(16, num_heads=4).double().eval()
    layer.load_state_dict({k: v for k, v in state.items() if k.startswith(('conv', 'sa_weight'))})
    state = {k: v.double() for k, v in state.items()}
    # The rest of the official block, around the layer.
    x = tensors['input'].double()
    x = x + nn.functional.conv2d(
        x, state['pos_embed.weight'], state['pos_embed.bias'], padding=1, groups=16
    )

    def norm(x, name):
        return nn.functional.batch_norm(
            x,
            *(state[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias')),
        )

    normed = norm(x, 'norm1')
    x = x + layer(normed) - normed
    hidden = nn.functional.conv2d(norm(x, 'norm2'), state['mlp.fc1.weight'], state['mlp.fc1.bias'])
    hidden = nn.functional.gelu(hidden)
    x = x + nn.functional.conv2d(hidden, state['mlp.fc2.weight'], state['mlp.fc2.bias'])
    assert relative_error(x, tensors['out_f64']) < 1e-11


@pytest.mark.parametrize(
    ('channels', 'num_heads', 'message'),
    [
        (64, 7, '64 channels .*num_heads=7.*4 and 8'),
        (7, 2, 'num_heads=2.*1 and 7'),
        (6, 8, 'num_heads=8.*: 6'),
        (8, 0, 'num_heads must be a positive integer, but got 0'),
    ],
)
def test_heads_must_divide_the_channels(channels, num_heads, message):
    with pytest.raises(ValueError, match=message):
        MixedAffinity(channels, num_heads)


def test_an_even_kernel_names_its_neighbours():
    with pytest.raises(ValueError, match=r'kernel_size=4 .*3 and 5'):
        MixedAffinity(8, kernel_size=4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_the_attention_runs_in_linear_memory(dtype):
    attention = pytest.importorskip('torch.nn.attention')
    layer = MixedAffinity(16).to(dtype)
    # Any other backend, such as the one that makes the whole matrix, is an error in here.
    with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):
        out = layer(torch.randn(1, 16, 20, 30).to(dtype))
    assert out.shape == (1, 16, 20, 30)


def test_a_large_map_makes_no_square_tensor():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    layer, positions = MixedAffinity(8), 64 * 64
    with Watch():
        layer(torch.randn(1, 8, 64, 64)).sum().backward()
    assert largest < 100 * positions < positions**2
