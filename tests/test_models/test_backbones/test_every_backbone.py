"""What every staged backbone promises, whatever it computes. (VAN's own tests say it for VAN.)"""

import inspect
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch_versions import compiles

from mmlska.layers import LayerNorm2d
from mmlska.models import VAN, ContainerLight, GhostNetV2, VANClassifier
from mmlska.models.backbones.base import StagedBackbone
from mmlska.ops import use_backend
from mmlska.registry import MODELS

NANO = dict(embed_dims=[4, 6, 8, 12], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2])


def ghost(**options):
    return GhostNetV2(0.25, **options)


def dilated_ghost(**options):
    return GhostNetV2(0.25, output_stride=16, **options)


def light(**options):
    return ContainerLight(dict(NANO, num_heads=4), **options)


def full(**options):
    return ContainerLight(dict(NANO, num_heads=[1, 2, 2, 4]), **options)


BUILDERS = [ghost, dilated_ghost, light, full]
STRIDES = {dilated_ghost: (4, 8, 16, 16)}

every_backbone = pytest.mark.parametrize('build', BUILDERS)
pytestmark = pytest.mark.filterwarnings('ignore:an input of .* positions:UserWarning')


def randomised(model, seed=0):
    """Far from the initial values, so that every parameter and statistic matters."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.1)
    return model


def test_every_registered_backbone_is_tested():
    staged = {kind for kind in MODELS.module_dict.values() if issubclass(kind, StagedBackbone)}
    # A VAN with a head, which has tests of its own.
    assert staged - {VANClassifier} == {VAN, GhostNetV2, ContainerLight}


@pytest.mark.parametrize('backbone', [GhostNetV2, ContainerLight])
def test_signature(backbone):
    parameters = inspect.signature(backbone).parameters
    assert list(parameters)[1] == 'out_indices'
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults['out_indices'] == (0, 1, 2, 3)
    assert defaults['frozen_stages'] == -1
    assert defaults['norm_eval'] is defaults['with_cp'] is False
    assert defaults['init_cfg'] is None


@every_backbone
@pytest.mark.parametrize('size', [(64, 96), (97, 61), (33, 1), (1, 1), (31, 5)])
def test_any_input_size_gives_maps_at_the_strides(build, size):
    model = build().eval()
    outs = model(torch.rand(1, 3, *size))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [
        (1, channels, math.ceil(size[0] / s), math.ceil(size[1] / s))
        for channels, s in zip(model.out_channels, STRIDES.get(build, (4, 8, 16, 32)), strict=True)
    ]
    assert all(out.is_contiguous() and torch.isfinite(out).all() for out in outs)


@every_backbone
def test_images_may_have_other_channels(build):
    assert build(in_channels=1).eval()(torch.rand(1, 1, 32, 32))[0].shape[2:] == (8, 8)


@every_backbone
@pytest.mark.parametrize('out_indices', [(0,), (1, 3), (0, 2), 2, (-1,)])
def test_out_indices_choose_among_the_same_maps(build, out_indices):
    whole = randomised(build()).eval()
    part = build(out_indices=out_indices).eval()
    part.load_state_dict(whole.state_dict())
    x = torch.rand(1, 3, 64, 64)
    chosen = (out_indices,) if isinstance(out_indices, int) else out_indices
    maps = part(x)
    assert part.out_channels == tuple(out.shape[1] for out in maps)
    for out, i in zip(maps, chosen, strict=True):
        assert torch.equal(out, whole(x)[i])


@every_backbone
@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 2), (3,), (0, 1, 2, 3)])
def test_every_parameter_learns(build, out_indices):
    # DistributedDataParallel stops at a parameter that reaches no loss.
    model = build(out_indices=out_indices)
    sum(out.square().mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_backbone
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages_neither_learn_nor_update_statistics(build, frozen_stages):
    # Not even before train() is called: an optimizer or DDP may look at the model first.
    for model in (build(frozen_stages=frozen_stages), build(frozen_stages=frozen_stages).train()):
        frozen = {
            name
            for i in range(frozen_stages + 1)
            for module in model.stage(i)
            for name, tensor in model.named_parameters()
            if any(tensor is own for own in module.parameters())
        }
        trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
        assert trained == {name for name, _ in model.named_parameters()} - frozen
    assert bool(trained) == (frozen_stages < 3)
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items() if 'running_var' in name}
    model(torch.rand(2, 3, 64, 64))
    still = {name for name, value in before.items() if torch.equal(value, state[name])}
    assert still == {name for name in before if name.replace('running_var', 'weight') in frozen}


@every_backbone
def test_the_stages_are_the_whole_model(build):
    model = build()
    parts = [p for i in range(4) for module in model.stage(i) for p in module.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert len(parts) == len(list(model.parameters()))


@every_backbone
def test_norm_eval_keeps_the_statistics(build):
    model = build(norm_eval=True)
    assert model.train() is model
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.training


@every_backbone
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(frozen_stages=2, out_indices=(0, 1)), r'frozen_stages=2 .*-1 \(none\) to 1'),
        (dict(out_indices=(4,)), 'is out of range: allowed are stages 0 to 3'),
        (dict(out_indices=(1, 0)), 'is not possible: allowed are stages 0 to 3'),
    ],
)
def test_impossible_indices_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@every_backbone
def test_initialisation_is_that_of_pytorch(build):
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 300:
            bound = module.weight[0].numel() ** -0.5
            assert 0.95 * bound < module.weight.abs().max() <= bound
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@every_backbone
def test_an_init_cfg_takes_effect(build):
    model = build(init_cfg=[dict(type='Constant', layer='Conv2d', val=0.5)])
    model.init_weights()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all((conv.weight == 0.5).all() for conv in convs)


@every_backbone
def test_builds_are_deterministic_under_a_seed(build):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every_backbone
def test_state_dict_round_trip(build):
    source, target = randomised(build()).eval(), build().eval()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(1, 3, 48, 40)
    assert all(torch.equal(a, b) for a, b in zip(source(x), target(x), strict=True))


@every_backbone
def test_checkpointed_blocks_give_the_same_gradients(build):
    plain, saving = build().double().eval(), build(with_cp=True).double().eval()
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 32, dtype=torch.float64)
    for model, passes in ((plain, 1), (saving, 2)):
        done = []
        norm, *_ = (m for m in model.stage(2)[-1].modules() if isinstance(m, nn.BatchNorm2d))
        norm.register_forward_hook(lambda *_, done=done: done.append(1))
        sum(out.square().mean() for out in model(x)).backward()
        assert len(done) == passes
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    'model',
    [
        GhostNetV2(0.05, out_indices=(0, 1)),
        GhostNetV2(0.05, out_indices=(2,), output_stride=8),
        ContainerLight(
            dict(embed_dims=[2, 4], depths=[1, 1], ffn_ratios=[2, 2], num_heads=2),
            out_indices=(0, 1),
        ),
    ],
    ids=['ghost', 'dilated ghost', 'container'],
)
def test_gradients_of_a_whole_backbone(model):
    torch.manual_seed(0)
    model = randomised(model).double().eval()
    # A step across a ReLU has no derivative: keep away from zero.
    x = torch.rand(1, 3, 13, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,), fast_mode=True)


@pytest.mark.parametrize('build', [GhostNetV2, ghost, dilated_ghost, ContainerLight, light])
@pytest.mark.parametrize('training', [False, True])
def test_the_fast_forms_and_layouts_give_the_same_maps_and_gradients(build, training):
    torch.manual_seed(0)
    model = build().train(training)
    parameters = [*model.parameters()]
    image = torch.rand(2, 3, 128, 160)
    results = []
    for backend in ('plain', 'auto'):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with use_backend(backend):
            outs = model(image)
            generator = torch.Generator().manual_seed(1)
            loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs)
            grads = torch.autograd.grad(loss, parameters)
            model.load_state_dict(state)
            with torch.no_grad():
                inferred = model(image)
        model.load_state_dict(state)
        assert all(out.is_contiguous() for out in (*outs, *inferred))
        results.append([*outs, *inferred, torch.cat([grad.flatten() for grad in grads])])
    *maps, (found, expected) = zip(*results, strict=True)
    # Rounding moves some values across the kink of a ReLU, where gradients jump.
    assert (found - expected).norm() < 2e-2 * expected.norm()
    for found, expected in maps:
        assert (found - expected).norm() < 1e-4 * expected.norm()


def van(**options):
    return VAN(NANO, attention=dict(type='LSKA', kernel_size=7), **options)


@pytest.mark.parametrize('build', [van, ghost, light])
def test_layer_norms_in_the_blocks_act_over_the_channels(build):
    """So the map of an image is the same whatever the size of the batch, in training too."""
    model = build(norm_cfg=dict(type='LN', eps=1e-6)).train()
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert all(isinstance(norm, LayerNorm2d) for norm in norms)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = torch.rand(3, 3, 64, 64)
    together = model(x)
    for i, image in enumerate(x):
        for out, alone in zip(together, model(image[None]), strict=True):
            assert torch.allclose(out[i : i + 1], alone, atol=1e-4)
    sum(out.square().mean() for out in together).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize('build', [van, ghost, light])
def test_a_norm_that_cannot_be_built_is_refused_at_once(build):
    with pytest.raises(ValueError, match="a norm is configured by a dict with a 'type'"):
        build(norm_cfg=None)
    with pytest.raises(KeyError, match="the nearest is 'BN'"):
        build(norm_cfg=dict(type='BNN'))


@every_backbone
def test_bf16_autocast_trains(build):
    model = build()
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(torch.rand(2, 3, 64, 64))
    sum(out.float().square().mean() for out in outs).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@compiles
@pytest.mark.parametrize(
    'build', [pytest.param(dilated_ghost, marks=pytest.mark.slow), light, full]
)
def test_compiles_and_exports(build):
    model = build().eval()
    x = torch.rand(1, 3, 37, 50)
    with warnings.catch_warnings():
        # Telling of the memory that an input needs must not break the graph.
        warnings.filterwarnings('error', message='an input of .* positions')
        torch._dynamo.reset()
        compiled = torch.compile(model, backend='eager', fullgraph=True)(x)
        exported = torch.export.export(model, (x,)).module()(x)
    for plain, first, second in zip(model(x), compiled, exported, strict=True):
        assert torch.allclose(plain, first, atol=1e-5)
        assert torch.allclose(plain, second, atol=1e-5)


@pytest.mark.parametrize(
    ('build', 'gradients'),
    [(van, True), (van, False), (ghost, True), (light, True), (full, True)],
)
def test_traces_with_the_checks_of_the_tracer_and_runs_at_other_sizes(build, gradients):
    model, other = build().eval(), torch.rand(2, 3, 75, 90)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, torch.rand(1, 3, 64, 64))
    for found, expected in zip(traced(other), model(other), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('build', [van, *BUILDERS])
def test_is_followed_by_torch_fx(build):
    model, x = build().eval(), torch.rand(1, 3, 65, 72)
    for found, expected in zip(torch.fx.symbolic_trace(model)(x), model(x), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@compiles
@pytest.mark.parametrize('build', [van, light])
def test_an_exported_program_runs_at_other_sizes(build):
    model, other = build(out_indices=(0, 1)).eval(), torch.rand(1, 3, 96, 80)
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.export(model, (torch.rand(1, 3, 64, 64),), dynamic_shapes=(sides,))
        for found, expected in zip(program.module()(other), model(other), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


@every_backbone
def test_builds_without_memory(build):
    with torch.device('meta'):
        model = build(drop_path_rate=0.1) if build in (light, full) else build()
    assert all(tensor.is_meta for tensor in model.parameters())
    outs = model.eval()(torch.empty(1, 3, 800, 1344, device='meta'))
    assert outs[0].shape[2:] == (200, 336)


@every_backbone
def test_pretrained_is_short_for_an_init_cfg(build, tmp_path):
    source, path = build(), str(tmp_path / 'weights.pth')
    torch.save(randomised(source).state_dict(), path)
    model = build(pretrained=path)
    assert model.init_cfg == dict(type='Pretrained', checkpoint=path)
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    with pytest.raises(ValueError, match=r'pretrained=.* and init_cfg=.* leave one out'):
        build(pretrained=path, init_cfg=dict(type='Pretrained', checkpoint='other.pth'))


@pytest.mark.parametrize('build', [*BUILDERS, lambda: VAN(NANO)])
@pytest.mark.parametrize(
    ('images', 'told'),
    [
        (torch.rand(1, 4, 32, 32), r'for maps \(N, 3, H, W\), but gets \(1, 4, 32, 32\)'),
        (torch.rand(3, 32, 32), r'add the batch axis'),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r'convert the map with x.to\(torch.float32'),
        (torch.zeros(1, 3, 32, 32, dtype=torch.double), r'weights of torch.float32, but gets'),
    ],
)
def test_other_images_are_refused_by_what_the_backbone_takes(build, images, told):
    with pytest.raises(ValueError, match=told):
        build()(images)


@pytest.mark.parametrize('build', [light, lambda: VAN(NANO)])
def test_a_stem_that_was_exchanged_counts_as_it_is(build):
    model = build().eval()
    stem = model.patch_embed1.projection
    more = nn.Conv2d(6, stem.out_channels, stem.kernel_size, stem.stride, stem.padding)
    model.patch_embed1.projection = more
    assert len(model(torch.rand(1, 6, 32, 32))) == 4
    more.register_forward_pre_hook(lambda _, args: (args[0].float().repeat(1, 2, 1, 1),))
    assert len(model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))) == 4
    more._forward_pre_hooks.clear()
    model.patch_embed1.projection = nn.Sequential(nn.Conv2d(2, 6, 1), more)
    assert len(model(torch.rand(1, 2, 32, 32))) == 4
