import warnings

import pytest
import torch
from torch import nn

from mmlska.analysis.complexity import count_classifier, count_params
from mmlska.models import ContainerLight
from mmlska.models.backbones.container import ContainerBlock, PatchEmbed, affinity_bytes

NANO = dict(embed_dims=[4, 6, 8, 12], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2])


def nano(num_heads=4, **options):
    return ContainerLight(dict(NANO, num_heads=num_heads), **options)


def on_meta(arch):
    with torch.device('meta'):
        return ContainerLight(arch)


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(('name', 'num_heads'), [('cblock_d16', 0), ('mixblock_d16_h4', 4)])
def test_a_block_equals_the_official_code(golden, name, num_heads):
    state, tensors = golden(f'g_container/{name}')
    options = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='GELU'))
    block = ContainerBlock(16, 4, num_heads, **options).eval()
    block.load_state_dict(state)
    x = tensors['input']
    assert relative_error(block(x), tensors['out_f64']) < 1e-5
    assert relative_error(block.double()(x.double()), tensors['out_f64']) < 1e-11


def test_parameters_and_macs_are_those_counted_on_the_official_code(golden):
    counted = golden('g_container_table.json')['container_v1_light']
    model = on_meta('light')
    assert count_params(model) == counted['params_no_head']
    for stage, params in counted['stages'].items():
        assert count_params(getattr(model, stage)) == params
    classifier = count_classifier(model, (224, 224))
    assert classifier.params == counted['params'] == 20_633_643
    assert classifier.macs == counted['macs_incl_attention_matmul_224']
    attention = 3 * 2 * 49**2 * 512
    assert classifier.macs - attention == counted['macs_conv_linear_224'] == 3_840_330_752


@pytest.mark.filterwarnings('ignore:an input of')
def test_mixing_in_every_stage_costs_what_was_counted():
    # 22.434 M parameters and 8.95 G multiply-adds, counted apart from this code.
    classifier = count_classifier(on_meta('full'), (224, 224))
    assert round(classifier.params / 1e6, 3) == 22.434
    assert round(classifier.macs / 1e9, 2) == 8.95


def test_the_light_model_mixes_in_the_last_stage_only():
    model = on_meta('light')
    mixing = [name for name, module in model.named_modules() if hasattr(module, 'sa_weight')]
    assert mixing == [f'blocks4.{i}' for i in range(3)]
    assert {block.num_heads for block in model.blocks4} == {16}
    assert model.out_channels == (64, 128, 320, 512)
    assert len([m for m in on_meta('full').modules() if hasattr(m, 'sa_weight')]) == 3 + 4 + 8 + 3


@pytest.mark.parametrize('size', [(8, 12), (9, 13), (1, 1), (3, 8)])
def test_patches_do_not_overlap_and_are_filled_up_with_zeros(size):
    embed = PatchEmbed(2, 5, patch_size=4).double()
    nn.init.normal_(embed.norm.weight)
    nn.init.normal_(embed.norm.bias)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    out = embed(x)
    rows, columns = (-(-side // 4) for side in size)
    assert out.shape == (2, 5, rows, columns)
    for i in range(rows):
        for j in range(columns):
            patch = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
            part = x[..., 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            patch[..., : part.shape[2], : part.shape[3]] = part
            token = patch.flatten(1) @ embed.projection.weight.flatten(1).T + embed.projection.bias
            mean, var = token.mean(1, keepdim=True), token.var(1, unbiased=False, keepdim=True)
            expected = (token - mean) / (var + 1e-5).sqrt() * embed.norm.weight + embed.norm.bias
            assert torch.allclose(out[..., i, j], expected)


def test_the_final_norm_acts_on_the_last_map_alone():
    model = nano().eval()
    x = torch.rand(1, 3, 64, 64)
    before = model(x)
    model.norm.running_mean.fill_(1.0)
    model.norm.running_var.fill_(4.0 - model.norm.eps)
    after = model(x)
    assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))
    assert torch.allclose(after[3], (before[3] * (1 + model.norm.eps) ** 0.5 - 1) / 2, atol=1e-6)
    assert nano(out_indices=(0, 1, 2)).norm is None


def test_drop_path_grows_linearly_over_the_blocks():
    model = nano(drop_path_rate=0.2)
    blocks = [block for i in range(1, 5) for block in getattr(model, f'blocks{i}')]
    assert isinstance(blocks[0].drop_path, nn.Identity)
    rates = [block.drop_path.drop_prob for block in blocks[1:]]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize('size', [(64, 64), (65, 40)])
def test_the_attention_runs_in_linear_memory(size):
    attention = pytest.importorskip('torch.nn.attention')
    # Any other backend, such as the one that makes the whole matrix, is an error in here.
    with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):
        nano().eval()(torch.rand(2, 3, *size))


# Architectures


def test_heads_may_be_given_for_every_stage():
    assert nano(4).num_heads == nano([0, 0, 0, 4]).num_heads == [0, 0, 0, 4]
    model = nano([1, 0, 2, 0])
    mixing = {name for name, module in model.named_modules() if hasattr(module, 'sa_weight')}
    assert mixing == {'blocks1.0', 'blocks3.0', 'blocks3.1'}


def test_there_may_be_other_numbers_of_stages():
    arch = dict(embed_dims=[4, 8], depths=[1, 2], ffn_ratios=[2, 1.5], num_heads=2)
    outs = ContainerLight(arch, out_indices=(0, 1)).eval()(torch.rand(1, 3, 33, 20))
    assert [tuple(out.shape) for out in outs] == [(1, 4, 9, 5), (1, 8, 5, 3)]


@pytest.mark.parametrize('error', [ValueError, AssertionError])
def test_an_unknown_arch_is_refused(error):
    with pytest.raises(error, match="'tiny' is not in default archs: light, full"):
        ContainerLight('tiny')


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        (NANO, 'Custom arch needs a dict with the keys embed_dims, .*num_heads, but got'),
        (dict(NANO, num_heads=4, depths=[1, 1]), 'depths has 2'),
        (dict(NANO, num_heads=5), '12 channels .*num_heads=5.*4 and 6'),
        (dict(NANO, num_heads=[1, 4, 1, 1]), '6 channels .*num_heads=4.*3 and 6'),
        (dict(NANO, num_heads=[1, 1]), r'one for each of 4 stages, but got \[1, 1\]'),
        (dict(NANO, num_heads=None), 'one for each of 4 stages, but got None'),
        (dict(NANO, num_heads=-4), 'num_heads must be a positive integer, but got -4'),
    ],
)
def test_a_malformed_arch_is_refused(arch, message):
    with pytest.raises(ValueError, match=message):
        ContainerLight(arch)


def test_rates_must_be_probabilities():
    with pytest.raises(ValueError, match=r'drop_path_rate=1.5 is not possible: .*\[0, 1\)'):
        nano(drop_path_rate=1.5)


# The memory that mixing in early stages takes


def test_the_affinities_of_a_detectors_input():
    # 200 x 320 positions in stage 1 at 800 x 1280: 4.1e9 affinities a head.
    sizes = affinity_bytes(dict(num_heads=[2, 4, 10, 16]), (1, 3, 800, 1280), 4)
    assert sizes[0] == 2 * (200 * 320) ** 2 * 4
    assert sizes[3] == 16 * (25 * 40) ** 2 * 4
    assert affinity_bytes(dict(num_heads=[0, 0, 0, 16]), (2, 3, 1, 33), 2) == [0, 0, 0, 16 * 16]


def test_mixing_early_warns_of_the_memory_that_the_input_needs():
    model = nano([1, 2, 2, 4]).eval()
    # 64 x 32 positions, 1 head, float32, 2 images; later stages have a quarter each.
    first = 2 * 1 * (64 * 32) ** 2 * 4
    everything = first + 2 * 4 * (2 * (32 * 16) ** 2 + 2 * 2 * (16 * 8) ** 2 + 4 * (8 * 4) ** 2)
    message = (
        rf'input of 2x256x128 has 2048 positions in stage 1, .* one block take '
        rf'{first / 2**30:.3g} GiB, .* backward pass, {everything / 2**30:.3g} GiB'
    )
    with torch.no_grad():
        with pytest.warns(UserWarning, match=message):
            model(torch.rand(2, 3, 256, 128))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            model(torch.rand(2, 3, 256, 128))
            model(torch.rand(1, 3, 64, 64))
        with pytest.warns(UserWarning, match='input of 2x256x160'):
            model(torch.rand(2, 3, 256, 160))


def test_mixing_in_the_last_stage_alone_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        nano().eval()(torch.rand(1, 3, 256, 128))


def test_a_list_of_rates_is_refused():
    with pytest.raises(ValueError, match=r'drop_path_rate=\[0.1, 0.2\] is not .* one number in'):
        nano(drop_path_rate=[0.1, 0.2])
