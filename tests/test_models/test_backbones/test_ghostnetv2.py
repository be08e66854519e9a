import pytest
import torch
from torch import nn
from torch_versions import compiles

from mmlska.analysis.complexity import count_macs, count_params, meta_input
from mmlska.models import GhostNetV2

WIDTHS = ['1.0', '1.3', '1.6']


@pytest.fixture(scope='module')
def table(golden):
    return golden('f_ghostnetv2_table.json')


@compiles
@pytest.mark.slow
def test_is_exported_with_the_sides_that_the_documents_tell():
    model = GhostNetV2(0.25).eval()
    sides = {2: torch.export.Dim('height', min=97), 3: torch.export.Dim('width', min=97)}
    program = torch.export.export(model, (torch.rand(2, 3, 128, 160),), dynamic_shapes=(sides,))
    for size in ((97, 97), (161, 300)):
        x = torch.rand(2, 3, *size)
        for found, expected in zip(program.module()(x), model(x), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


def on_meta(*args, **options):
    with torch.device('meta'):
        return GhostNetV2(*args, **options).eval()


@pytest.mark.parametrize('width', WIDTHS)
def test_parameters_and_macs_are_those_counted_on_the_official_code(width, table):
    counted = table[width]
    model = on_meta(float(width), with_last_conv=True)
    assert count_params(model) == counted['params_no_head']
    macs, (*_, last) = count_macs(model, meta_input(1, 3, 224, 224))
    classifier = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(last.shape[1], 1280, 1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ).to('meta')
    assert count_params(model) + count_params(classifier) == counted['params']
    assert macs + count_macs(classifier, last)[0] == counted['macs_224']


@pytest.mark.parametrize('width', WIDTHS)
def test_every_block_is_the_official_one(width, table):
    model = on_meta(float(width), with_last_conv=True)
    shapes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: list(out[0].shape)})
        )
    model(meta_input(1, 3, 224, 224))
    blocks = table[width]['blocks']
    assert len(blocks) == sum(len(group) for group in model.blocks) == 17
    assert model.conv_stem.out_channels == table[width]['stem_out']
    for expected in blocks:
        name = f'blocks.{expected["stage"]}.{expected["block"]}'
        block = model.get_submodule(name)
        assert count_params(block) == expected['params'], name
        assert shapes[name] == expected['out_shape'], name
        if 'ghost1_mode' in expected:
            assert (block.ghost1.short_conv is not None) == (expected['ghost1_mode'] == 'attn')
            assert (block.conv_dw is not None) == expected['has_conv_dw']
            assert bool(len(block.shortcut)) == expected['shortcut']
            reduced = block.se.conv_reduce.out_channels if block.se else None
            assert reduced == expected['se_reduce']


def test_the_counts_of_the_unpublished_half_width():
    # Counted apart from this code: 2.858 M parameters and 49.6 M multiply-adds with the classifier.
    model = on_meta(0.5, with_last_conv=True)
    macs, (*_, last) = count_macs(model, meta_input(1, 3, 224, 224))
    assert last.shape[1] == 480
    head = 480 * 1280 + 1280 * 1000
    assert round((count_params(model) + head + 1280 + 1000) / 1e6, 3) == 2.858
    assert round((macs + head) / 1e6, 1) == 49.6


def test_the_names_are_the_official_ones(golden):
    official = golden('f_ghost/keys_w1.0.json')
    ours = on_meta(1.0, with_last_conv=True).state_dict()
    head = {key for key in official if key.startswith(('conv_head.', 'classifier.'))}
    assert {key: list(value.shape) for key, value in ours.items()} == {
        key: shape for key, shape in official.items() if key not in head
    }


@pytest.mark.parametrize(
    ('width', 'channels'),
    [
        (1.0, (24, 40, 112, 160)),
        (1.3, (32, 52, 144, 208)),
        (1.6, (40, 64, 180, 256)),
        (0.01, (4, 4, 4, 4)),
        (2, (48, 80, 224, 320)),
    ],
)
def test_channels_of_the_maps(width, channels):
    model = on_meta(width)
    assert model.out_channels == channels
    outs = model(meta_input(1, 3, 64, 64))
    assert tuple(out.shape[1] for out in outs) == channels


def test_the_last_convolution_is_optional():
    torch.manual_seed(0)
    plain, whole = GhostNetV2(0.25).eval(), GhostNetV2(0.25, with_last_conv=True).eval()
    plain.load_state_dict(whole.state_dict())
    assert whole.out_channels == (*plain.out_channels[:3], 240)
    x = torch.rand(1, 3, 64, 64)
    *first, last = plain(x)
    *same, activated = whole(x)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    # Inside the model the last convolution meets the map in the layout that the stage computes in.
    last = last.to(memory_format=torch.channels_last)
    assert torch.equal(activated, whole.blocks[9](last))
    assert activated.min() >= 0
    with pytest.raises(ValueError, match=r'with_last_conv=True ends stage 3, but .* is 1'):
        GhostNetV2(0.25, out_indices=(1,), with_last_conv=True)


@pytest.mark.parametrize('width', [0, -1.0, float('inf'), float('nan'), '1.0', None, True])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(ValueError, match=r'width=.* must be a positive number'):
        GhostNetV2(width)


@pytest.mark.parametrize('output_stride', [4, 64, None])
def test_an_impossible_output_stride_is_refused(output_stride):
    with pytest.raises(ValueError, match=f'output_stride={output_stride} .*allowed are 8, 16, 32'):
        GhostNetV2(output_stride=output_stride)


@pytest.mark.parametrize('size', [(64, 64), (50, 37)])
@pytest.mark.parametrize('output_stride', [16, 8])
def test_dilation_computes_the_same_and_more_between(output_stride, size):
    strided = GhostNetV2(0.25)
    for block in (block for group in strided.blocks for block in group):
        # Means over a finer map differ: gates that do not depend on their input.
        if block.se is not None:
            nn.init.zeros_(block.se.conv_expand.weight)
        if block.ghost1.short_conv is not None:
            nn.init.zeros_(block.ghost1.short_conv[5].weight)
    dilated = GhostNetV2(0.25, output_stride=output_stride)
    dilated.load_state_dict(strided.state_dict())
    strided.double().eval()
    dilated.double().eval()
    x = torch.rand(1, 3, *size, dtype=torch.float64)
    for out, expected, stride in zip(dilated(x), strided(x), (4, 8, 16, 32), strict=True):
        step = max(1, stride // output_stride)
        assert out.shape[2:] == tuple(-(-side // min(stride, output_stride)) for side in size)
        assert torch.allclose(out[..., ::step, ::step], expected, rtol=1e-10, atol=1e-12)


def test_dilation_takes_the_same_weights():
    shapes = {key: value.shape for key, value in on_meta(1.0).state_dict().items()}
    for output_stride in (16, 8):
        dilated = on_meta(1.0, output_stride=output_stride).state_dict()
        assert {key: value.shape for key, value in dilated.items()} == shapes


def test_other_norms_work():
    model = GhostNetV2(0.25, norm_cfg=dict(type='GN', num_groups=2))
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert model(torch.rand(1, 3, 32, 32))[-1].shape == (1, 40, 1, 1)
