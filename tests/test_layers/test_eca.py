import pytest
import torch

from mmlska.layers import adaptive_kernel_size
from mmlska.models import ECA


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


def explicit(layer, x):
    """The equation, channel by channel; channels beyond the first and the last count as zero."""
    weight = layer.conv.weight[0, 0]
    reach = len(weight) // 2
    out = torch.empty_like(x)
    for n, image in enumerate(x):
        means = [channel.sum() / channel.numel() for channel in image]
        for c, channel in enumerate(image):
            score = sum(
                weight[i] * means[c + i - reach]
                for i in range(len(weight))
                if 0 <= c + i - reach < len(means)
            )
            out[n, c] = channel / (1 + (-score).exp())
    return out


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (5, 7)])
@pytest.mark.parametrize('kernel_size', [None, 1, 3, 7, 31])
def test_equals_its_equation(size, kernel_size):
    torch.manual_seed(0)
    layer = ECA(12, kernel_size).double()
    x = torch.randn(2, 12, *size, dtype=torch.float64)
    assert relative_error(layer(x), explicit(layer, x)) < 1e-12


@pytest.mark.parametrize('channels', [64, 256])
def test_equals_the_official_layer(golden, channels):
    state, tensors = golden(f'd_eca/eca_c{channels}')
    layer = ECA(channels)
    layer.load_state_dict(state)
    assert relative_error(layer(tensors['input']), tensors['out_f64']) < 1e-5
    out = layer.double()(tensors['input'].double())
    assert relative_error(out, tensors['out_f64']) < 1e-12


def test_adaptive_kernels_are_the_papers(golden):
    table = golden('d_eca_table.json')['k']
    assert {channels: ECA(int(channels)).kernel_size for channels in table} == table


def test_adaptive_kernels_of_resnet():
    # Fig. 3 of the paper read with the output channels of ResNet-50's four stages.
    kernels = [ECA(channels).kernel_size for channels in (256, 512, 1024, 2048)]
    assert kernels == [5, 5, 5, 7]
    assert sum(n * k for n, k in zip((3, 4, 6, 3), kernels, strict=True)) == 86


@pytest.mark.parametrize(
    ('gamma', 'b', 'kernel_size'), [(1, 1, 9), (2, 0, 5), (4, 1, 3), (2, -20, 7), (0.5, 1, 19)]
)
def test_gamma_and_b_act_as_in_equation_12(gamma, b, kernel_size):
    assert ECA(256, gamma=gamma, b=b).kernel_size == kernel_size


def test_a_given_kernel_is_taken_as_it_is():
    layer = ECA(64, kernel_size=9)
    assert layer.kernel_size == 9
    assert sum(p.numel() for p in layer.parameters()) == 9


@pytest.mark.parametrize('channels', range(1, 300, 7))
def test_every_adaptive_kernel_is_odd_and_keeps_the_channels(channels):
    assert adaptive_kernel_size(channels) % 2 == 1
    assert ECA(channels)(torch.rand(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def test_an_even_kernel_names_its_neighbours():
    with pytest.raises(ValueError, match=r'kernel_size=4 .*Nearest legal sizes: 3 and 5'):
        ECA(64, kernel_size=4)


@pytest.mark.parametrize('kernel_size', [0, -3, 3.0, '3', True])
def test_a_kernel_that_is_no_positive_integer_is_refused(kernel_size):
    with pytest.raises(ValueError, match='kernel_size must be a positive integer'):
        ECA(64, kernel_size=kernel_size)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(in_channels=0), 'in_channels must be a positive integer, but got 0'),
        (dict(in_channels=64, gamma=0), 'gamma must be a positive number such as 2, but got 0'),
        (dict(in_channels=64, gamma=-1), 'gamma must be a positive number'),
        (dict(in_channels=64, gamma='2'), 'gamma must be a positive number'),
        (dict(in_channels=64, b=None), 'b must be a number such as 1, but got None'),
        (dict(in_channels=64, b=float('nan')), 'b must be a number'),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ECA(**options)


# The kernels of the published ResNets by stage, and what the adaptive rule gives.
KERNELS = {'3-5-5-7': (3, 5, 5, 7), 'adaptive': (None,) * 4}


def eca_resnet(scope, depth, kernels):
    """A ResNet of another library with ECA in every block, by config alone."""
    pytest.importorskip(scope)
    from mmengine.registry import MODELS, DefaultScope

    plugins = [
        dict(
            cfg=dict(type='mmlska.ECA', kernel_size=kernel_size),
            stages=tuple(i == stage for i in range(4)),
            position='after_conv3',
        )
        for stage, kernel_size in enumerate(kernels)
    ]
    settings = dict(type='ResNet', depth=depth, plugins=plugins)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings)


def official_checkpoint(depth, kernels):
    """Synthetic weights under the names of the official ECA-ResNet, with its classifier."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    shapes = {'conv1.weight': (64, 3, 7, 7), **norm('bn1', 64)}
    in_channels = 64
    for stage, (number, kernel_size) in enumerate(zip(blocks, kernels, strict=True), start=1):
        planes = 32 * 2**stage
        for index in range(number):
            block = f'layer{stage}.{index}'
            widths = [(planes, in_channels, 1), (planes, planes, 3), (4 * planes, planes, 1)]
            for i, (out, inner, k) in enumerate(widths, start=1):
                shapes[f'{block}.conv{i}.weight'] = (out, inner, k, k)
                shapes.update(norm(f'{block}.bn{i}', out))
            shapes[f'{block}.eca.conv.weight'] = (1, 1, kernel_size or ECA(4 * planes).kernel_size)
            if index == 0:
                shapes[f'{block}.downsample.0.weight'] = (4 * planes, in_channels, 1, 1)
                shapes.update(norm(f'{block}.downsample.1', 4 * planes))
            in_channels = 4 * planes
    shapes.update({'fc.weight': (1000, in_channels), 'fc.bias': (1000,)})
    generator = torch.Generator().manual_seed(0)
    return {key: torch.rand(shape, generator=generator) + 0.5 for key, shape in shapes.items()}


def norm(name, channels):
    keys = ('weight', 'bias', 'running_mean', 'running_var')
    return {f'{name}.{key}': (channels,) for key in keys}


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize(
    ('depth', 'kernels'),
    [(50, KERNELS['3-5-5-7']), (50, KERNELS['adaptive']), (101, KERNELS['3-5-5-7'])],
)
def test_an_official_checkpoint_loads_into_resnet_without_renaming(scope, depth, kernels):
    model = eca_resnet(scope, depth, kernels)
    checkpoint = official_checkpoint(depth, kernels)
    incompatible = model.load_state_dict(checkpoint, strict=False)
    assert incompatible.missing_keys == []
    assert incompatible.unexpected_keys == ['fc.weight', 'fc.bias']
    loaded = model.state_dict()
    assert sum('eca' in key for key in checkpoint) == {50: 16, 101: 33}[depth]
    assert all(torch.equal(loaded[k], v) for k, v in checkpoint.items() if not k.startswith('fc.'))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_an_official_checkpoint_loads_by_init_cfg(scope, tmp_path):
    checkpoint = official_checkpoint(50, KERNELS['3-5-5-7'])
    file = tmp_path / 'eca_resnet50_k3557.pth.tar'
    torch.save({'state_dict': {f'module.{k}': v for k, v in checkpoint.items()}}, file)
    model = eca_resnet(scope, 50, KERNELS['3-5-5-7'])
    model.init_cfg = dict(type='Pretrained', checkpoint=str(file))
    model.init_weights()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in checkpoint.items() if not k.startswith('fc.'))


def test_the_layer_acts_before_the_residual_sum():
    model = eca_resnet('mmdet', 50, KERNELS['3-5-5-7'])
    model.eval()
    block = model.layer1[1]
    x = torch.rand(1, 256, 6, 5)
    branch = x
    for i in (1, 2, 3):
        branch = getattr(block, f'bn{i}')(getattr(block, f'conv{i}')(branch))
        branch = branch.relu() if i < 3 else block.eca(branch)
    assert torch.allclose(block(x), (x + branch).relu(), atol=1e-6)


def test_a_kernel_that_was_meant_for_positions_is_warned_of():
    with pytest.warns(UserWarning, match='_delete_=True') as caught:
        ECA(32, kernel_size=23)
    assert 'its own rule takes 3' in str(caught[0].message)


@pytest.mark.parametrize('options', [dict(kernel_size=9), dict(gamma=0.5), {}])
def test_kernels_of_the_paper_and_its_rule_are_not(options, recwarn):
    ECA(64, **options)
    assert not recwarn
