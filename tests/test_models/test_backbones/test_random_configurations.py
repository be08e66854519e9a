"""Laws of every legal configuration of a backbone, on random ones."""

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmlska.models import VAN, ContainerLight, GhostNetV2

LAYERS = [
    dict(type='LSKA', kernel_size=11),
    dict(type='LSKA', kernel_size=7, dilation=2),
    dict(type='LKA', kernel_size=11),
    dict(type='LKATrivial', kernel_size=5),
    dict(type='LSKATrivial', kernel_size=7),
    dict(type='ECA'),
    dict(type='ContextAggregation', reduction=2),
    dict(type='DFCAttention'),
    dict(type='MixedAffinity', num_heads=2),
]
NORMS = [dict(type='BN'), dict(type='GN', num_groups=2), dict(type='LN')]
sides = st.integers(1, 70)


@st.composite
def stages(draw):
    """Sizes of one to four stages, and options that every backbone has."""
    number = draw(st.integers(1, 4))
    arch = dict(
        embed_dims=[4 * draw(st.integers(1, 3)) for _ in range(number)],
        depths=[draw(st.integers(1, 2)) for _ in range(number)],
        ffn_ratios=[draw(st.integers(1, 2)) for _ in range(number)],
    )
    return arch, draw(common_options(number))


@st.composite
def common_options(draw, number):
    indices = sorted(draw(st.sets(st.integers(0, number - 1), min_size=1)))
    return dict(
        out_indices=tuple(indices),
        frozen_stages=draw(st.integers(-1, indices[-1])),
        norm_eval=draw(st.booleans()),
        with_cp=draw(st.booleans()),
        in_channels=draw(st.integers(1, 4)),
        norm_cfg=draw(st.sampled_from(NORMS)),
    )


@st.composite
def plugins(draw, number):
    return [
        dict(
            cfg=dict(draw(st.sampled_from(LAYERS)), postfix=f'_{i}'),
            stages=tuple(draw(st.lists(st.booleans(), min_size=number, max_size=number))),
            position=draw(st.sampled_from(['after_attention', 'after_ffn', 'after_stage'])),
        )
        for i in range(draw(st.integers(0, 2)))
    ]


@st.composite
def vans(draw):
    arch, options = draw(stages())
    number = len(arch['depths'])
    return VAN, dict(
        options,
        arch=arch,
        attention=draw(st.sampled_from(LAYERS)),
        plugins=draw(plugins(number)),
        stage_norm_cfg=draw(st.sampled_from([dict(type='LN'), dict(type='BN')])),
        layer_scale_init_value=draw(st.sampled_from([0.0, 1e-2])),
        drop_path_rate=draw(st.sampled_from([0.0, 0.3])),
        drop_rate=draw(st.sampled_from([0.0, 0.1])),
        act_cfg=draw(st.sampled_from([dict(type='GELU'), dict(type='ReLU')])),
    )


@st.composite
def containers(draw):
    arch, options = draw(stages())
    heads = [draw(st.sampled_from([0, 1, 2, 4])) for _ in arch['depths']]
    drop_path_rate = draw(st.sampled_from([0.0, 0.3]))
    arch = dict(arch, num_heads=heads)
    return ContainerLight, dict(options, arch=arch, drop_path_rate=drop_path_rate)


@st.composite
def ghosts(draw):
    options = draw(common_options(4))
    # Groups of channels need an even number of them.
    options['norm_cfg'] = draw(st.sampled_from([dict(type='BN'), dict(type='LN')]))
    options['width'] = draw(st.sampled_from([0.2, 0.3]))
    options['output_stride'] = draw(st.sampled_from([8, 16, 32]))
    return GhostNetV2, options


def images(model, n, height, width):
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, first.shape[1], height, width, generator=generator)


def expected_shapes(model, n, height, width):
    limit = getattr(model, 'output_stride', 32)  # of GhostNetV2 alone
    strides = [min(4 * 2**i, limit) for i in model.out_indices]
    return [
        (n, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(model.out_channels, strides, strict=True)
    ]


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def equal(outs, others, tolerance=0.0):
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(b.abs().max().item(), 1))
        for a, b in zip(outs, others, strict=True)
    )


@pytest.mark.filterwarnings('ignore:an input of')
# A GhostNetV2 has all of its blocks at any width.
@pytest.mark.parametrize(('backbones', 'number'), [(vans, 25), (containers, 25), (ghosts, 8)])
def test_every_legal_configuration_holds_the_laws(backbones, number):
    @settings(
        max_examples=number,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(config=backbones(), height=sides, width=sides)
    def check(config, height, width):
        kind, options = config
        model = kind(**options)
        check_evaluation(model, height, width)
        check_training(model)

    check()


def check_evaluation(model, height, width):
    # In float64: norms over few channels that hardly differ enlarge what float32 rounds.
    model.double().eval()
    x = images(model, 2, height, width).double()
    outs = outputs(model, x)
    assert [tuple(out.shape) for out in outs] == expected_shapes(model, 2, height, width)
    assert all(out.isfinite().all() and out.is_contiguous() for out in outs)
    singles = zip(*(outputs(model, image[None]) for image in x), strict=True)
    assert equal(outs, [torch.cat(single) for single in singles], 1e-7)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert equal(outputs(other, x), outs)
        assert list(other.state_dict()) == list(model.state_dict())


def check_training(model):
    model.float().train()
    x = images(model, 2, 64, 64)
    loss = sum(out.square().mean() for out in model(x))
    parts = [part for i in range(model.frozen_stages + 1) for part in model.stage(i)]
    frozen = {id(parameter) for part in parts for parameter in part.parameters()}
    trained = {name: p for name, p in model.named_parameters() if id(p) not in frozen}
    assert all(parameter.requires_grad for parameter in trained.values())
    assert loss.requires_grad == bool(trained)
    if trained:
        loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        assert name not in trained or parameter.grad.isfinite().all(), name
