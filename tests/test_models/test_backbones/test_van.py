import copy
import inspect
import io
import math

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch_versions import compiles

from mmlska.models import VAN
from mmlska.models.backbones.van import VANBlock
from mmlska.ops import use_backend

NANO = dict(embed_dims=[8, 12, 16, 20], depths=[1, 1, 2, 1], ffn_ratios=[2, 2, 2, 2])


def nano(**options):
    return VAN(**{'arch': NANO, **options})


def randomised(model, seed=0):
    """Far from the initial values, so that every parameter and statistic matters."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.1)
    return model


def relative_error(out, expected):
    return ((out - expected).abs().max() / expected.abs().max()).item()


# Equality with the official code


def golden_model(attention, eps):
    arch = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], ffn_ratios=[4, 4, 4, 4])
    return VAN(arch, attention, stage_norm_cfg=dict(type='LN', eps=eps)).eval()


def check_golden(model, tensors, code=''):
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for i, out in enumerate(model.to(dtype)(tensors['input'].to(dtype))):
            assert relative_error(out, tensors[f'{code}out_f64.{i}']) < bound


@pytest.mark.parametrize(
    ('name', 'attention'),
    [
        ('small_lka_cls', dict(type='LKA', kernel_size=23)),
        ('small_lska_k11_cls', dict(type='LSKA', kernel_size=11)),
        ('small_lska_k23_cls', dict(type='LSKA', kernel_size=23)),
    ],
)
def test_equals_the_official_classification_code(golden, name, attention):
    state, tensors = golden(f'b_van/{name}')
    model = golden_model(attention, eps=1e-6)
    model.load_state_dict(state)
    check_golden(model, tensors)


@pytest.mark.parametrize(
    ('name', 'kernel_size'),
    [('small_lska_k23_mm', 23), ('small_lska_k23_oddsize_mm', 23), ('small_lska_k35_mm', 35)],
)
def test_equals_the_official_detection_and_segmentation_code(golden, name, kernel_size):
    state, tensors = golden(f'b_van/{name}')
    model = golden_model(dict(type='LSKA', kernel_size=kernel_size), eps=1e-5)
    model.load_state_dict(state)
    check_golden(model, tensors, 'det_')


def parse(name):
    """'LSKA-trivial-base-k53' or 'LKA-official-tiny' to an arch and an attention config."""
    *kind, arch, kernel = (
        name.replace('-official-tiny', '-tiny-k23')
        .replace('-official-small', '-small-k23')
        .replace('-official-base', '-base-k23')
        .split('-')
    )
    layer = kind[0] + ('Trivial' if 'trivial' in kind else '')
    return arch, dict(type=layer, kernel_size=int(kernel[1:]))


@pytest.mark.slow
def test_parameters_are_those_counted_on_the_official_code(golden):
    checked = 0
    for name, count in golden('c_counts.json').items():
        if not isinstance(count, dict) or 'params_backbone' not in count:
            continue
        if not name.startswith(('LSKA', 'LKA')):
            continue
        arch, attention = parse(name)
        with torch.device('meta'):
            model = VAN(arch, attention)
        assert sum(p.numel() for p in model.parameters()) == count['params_backbone'], name
        checked += 1
    assert checked >= 70


# mmpretrain's contract for its VAN, defaults aside


@pytest.mark.parametrize('error', [ValueError, AssertionError])
def test_an_unknown_arch_is_refused(error):
    with pytest.raises(error, match="'unknown' is not in default archs: tiny, t, b0"):
        VAN('unknown')


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        (dict(embed_dims=[8], ffn_ratios=[2]), 'Custom arch needs .*depths.*ffn_ratios'),
        (dict(NANO, heads=[1]), 'Custom arch needs .*heads'),
        (dict(NANO, depths=[1, 1]), 'depths has 2'),
        (dict(NANO, depths=[1, 1, 0, 1]), r'depths is \[1, 1, 0, 1\]'),
        (dict(NANO, embed_dims=[8, 8, 8, 2.5]), 'embed_dims is'),
        (dict(NANO, depths=3), 'depths is 3'),
        (dict(embed_dims=[], depths=[], ffn_ratios=[]), 'one entry a stage'),
        (dict(embed_dims=[4] * 5, depths=[1] * 5, ffn_ratios=[1] * 5), 'arch has 5 stages'),
        (7, 'Custom arch needs a dict .*got 7'),
    ],
)
def test_a_malformed_arch_is_refused(arch, message):
    with pytest.raises(ValueError, match=message):
        VAN(arch)


@pytest.mark.parametrize(
    ('names', 'embed_dims', 'depths'),
    # Tables 2 of arXiv 2202.09741 and II of arXiv 2309.01439.
    [
        (('tiny', 't', 'b0', 'B0'), [32, 64, 160, 256], [3, 3, 5, 2]),
        (('small', 's', 'b1'), [64, 128, 320, 512], [2, 2, 4, 2]),
        (('base', 'b', 'b2'), [64, 128, 320, 512], [3, 3, 12, 3]),
        (('large', 'l', 'b3'), [64, 128, 320, 512], [3, 5, 27, 3]),
        (('b4',), [64, 128, 320, 512], [3, 6, 40, 3]),
        (('b5',), [96, 192, 480, 768], [3, 3, 24, 3]),
        (('b6',), [96, 192, 384, 768], [6, 6, 90, 6]),
    ],
)
def test_named_archs(names, embed_dims, depths):
    for name in names:
        with torch.device('meta'):
            model = VAN(name)
        assert model.arch_settings == dict(
            embed_dims=embed_dims, depths=depths, ffn_ratios=[8, 8, 4, 4]
        )
        assert model.out_channels == tuple(embed_dims)
        for i, depth in enumerate(depths):
            blocks = getattr(model, f'blocks{i + 1}')
            assert (len(blocks), blocks[-1].out_channels) == (depth, embed_dims[i])


@pytest.mark.parametrize('size', [(224, 224), (256, 309), (1, 1), (33, 1), (64, 95)])
def test_any_input_size_gives_strides_4_to_32(size):
    outs = nano().eval()(torch.rand(2, 3, *size))
    assert isinstance(outs, tuple)
    shapes = [tuple(out.shape) for out in outs]
    assert shapes == [
        (2, dims, math.ceil(size[0] / s), math.ceil(size[1] / s))
        for dims, s in zip(NANO['embed_dims'], (4, 8, 16, 32), strict=True)
    ]
    assert all(out.is_contiguous() for out in outs)


def test_patch_sizes_set_the_strides():
    outs = nano(patch_sizes=[7, 5, 5, 5], out_indices=(3,)).eval()(torch.rand(1, 3, 224, 224))
    assert outs[0].shape == (1, 20, 3, 3)
    with pytest.raises(ValueError, match=r'odd and positive, but got \(7, 2, 3, 3\)'):
        nano(patch_sizes=(7, 2, 3, 3))


def test_drop_path_grows_linearly_over_the_blocks():
    model = nano(drop_path_rate=0.2)
    blocks = [block for i in range(1, 5) for block in getattr(model, f'blocks{i}')]
    assert isinstance(blocks[0].drop_path, nn.Identity)
    rates = [block.drop_path.drop_prob for block in blocks[1:]]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_drop_path_is_the_same_whether_or_not_the_last_stages_are_built():
    part = nano(drop_path_rate=0.2, out_indices=(0, 1))
    assert part.blocks2[0].drop_path.drop_prob == pytest.approx(0.05)


def in_the_official_order(block, x, branch, scale):
    """The residual sum of a block as the official code has it: every step a pass of its own."""
    return x + block.drop_path(scale[:, None, None] * branch)


def train(model, monkeypatch, official, steps, images, **autocast):
    """Losses of some steps, the gradients of the last one, and the next random number."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(4)
    losses = []
    with monkeypatch.context() as patch:
        if official:
            patch.setattr(VANBlock, '_add', in_the_official_order)
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast('cpu', torch.bfloat16, **autocast):
                outs = model(images)
            loss = sum(out.square().mean() for out in outs)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), [p.grad for p in model.parameters()], torch.rand(4)


@pytest.mark.parametrize('with_cp', [False, True])
def test_layer_scale_drop_path_and_sum_in_one_are_those_of_the_official_order(with_cp, monkeypatch):
    torch.manual_seed(0)
    model = nano(drop_path_rate=0.5, layer_scale_init_value=0.5, with_cp=with_cp).double()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    runs = [train(model, monkeypatch, order, 2, images, enabled=False) for order in (False, True)]
    (losses, grads, after), (wanted, wanted_grads, wanted_after) = runs
    # Nothing that is drawn later knows the difference, so that seeds and resumed runs repeat.
    assert torch.equal(after, wanted_after)
    torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=0)
    for grad, expected in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-13)


def test_under_autocast_losses_are_those_of_the_official_order_within_the_noise(monkeypatch):
    torch.manual_seed(0)
    model = nano(drop_path_rate=0.2)
    images = torch.randn(4, 3, 64, 64)
    exact, *_ = train(model, monkeypatch, True, 4, images, enabled=False)
    official, *_ = train(model, monkeypatch, True, 4, images)
    found, *_ = train(model, monkeypatch, False, 4, images)
    noise = (official - exact).norm()
    assert noise > 0
    assert (found - official).norm() <= 0.5 * noise
    assert (found - exact).norm() <= 1.5 * noise


def test_under_autocast_the_residual_stream_is_of_float32():
    model, dtypes = nano(drop_path_rate=0.2).train(), []
    for block in model.blocks1:
        block.register_forward_hook(lambda block, inputs, out: dtypes.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        model(torch.randn(2, 3, 64, 64))
    assert dtypes and set(dtypes) == {torch.float32}


@torch.no_grad()
def test_in_evaluation_drop_path_drops_nothing_but_is_called_where_watched():
    dropping = nano(drop_path_rate=0.5, layer_scale_init_value=0.5).eval()
    steady = nano(layer_scale_init_value=0.5).eval()
    steady.load_state_dict(dropping.state_dict())
    x, seen = torch.rand(1, 3, 64, 64), []
    with use_backend('plain'):
        expected = steady(x)
    for _ in range(2):
        for out, wanted in zip(dropping(x), expected, strict=True):
            assert torch.allclose(out, wanted, atol=1e-5)
        dropping.blocks4[-1].drop_path.register_forward_hook(lambda *call: seen.append(call))
    assert len(seen) == 2


def test_norm_eval_keeps_the_statistics():
    model = nano(norm_eval=True)
    assert model.train() is model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.blocks1[0].training


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_frozen_stages_neither_learn_nor_update_statistics(frozen_stages):
    # Not even before train() is called: an optimizer or DDP may look at the model first.
    for model in (nano(frozen_stages=frozen_stages), nano(frozen_stages=frozen_stages).train()):
        for i in range(4):
            for module in model.stage(i):
                assert all(p.requires_grad == (i > frozen_stages) for p in module.parameters())
                assert module.training == (i > frozen_stages)
    before = {k: v.clone() for k, v in model.state_dict().items() if 'running_mean' in k}
    model(torch.rand(2, 3, 64, 64))
    for key, value in before.items():
        stage = int(key.split('.')[0][-1]) - 1
        assert torch.equal(value, model.state_dict()[key]) == (stage <= frozen_stages)


def test_frozen_stages_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r'frozen_stages=2 .*-1 \(none\) to 1'):
        nano(frozen_stages=2, out_indices=(0, 1))


# What DESIGN promises beyond that


def test_signature():
    parameters = list(inspect.signature(VAN).parameters.values())
    names = (
        'arch attention in_channels drop_rate drop_path_rate out_indices frozen_stages norm_eval '
        'norm_cfg act_cfg stage_norm_cfg layer_scale_init_value plugins with_cp init_cfg'
    )
    assert [p.name for p in parameters][:15] == names.split()
    defaults = {p.name: p.default for p in parameters}
    assert defaults['attention'] == dict(type='LSKA', kernel_size=23)
    assert defaults['stage_norm_cfg'] == dict(type='LN', eps=1e-6)
    assert defaults['out_indices'] == (0, 1, 2, 3)


def test_building_leaves_the_given_configs_alone():
    attention = dict(type='LSKA', kernel_size=11)
    plugins = [dict(cfg=dict(type='LKA', kernel_size=7, postfix='_a'), position='after_ffn')]
    nano(attention=attention, plugins=plugins)
    nano(attention=attention, plugins=plugins)
    assert attention == dict(type='LSKA', kernel_size=11)
    assert plugins[0]['cfg'] == dict(type='LKA', kernel_size=7, postfix='_a')


@pytest.mark.parametrize('out_indices', [(0,), (1, 3), (0, 2), 2, (-1,)])
def test_out_indices_choose_among_the_same_maps(out_indices):
    full = nano().eval()
    part = nano(out_indices=out_indices).eval()
    part.load_state_dict(full.state_dict())
    x = torch.rand(1, 3, 64, 64)
    chosen = (out_indices,) if isinstance(out_indices, int) else out_indices
    for out, i in zip(part(x), chosen, strict=True):
        assert torch.equal(out, full(x)[i])


def test_stages_beyond_the_last_out_index_are_not_built():
    model = nano(out_indices=(0, 1))
    assert not hasattr(model, 'blocks3')
    sum(out.mean() for out in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('out_indices', [(4,), (-5,), (), None, (0, 'a')])
def test_out_indices_out_of_range_are_refused(out_indices):
    with pytest.raises(ValueError, match='is out of range: allowed are stages 0 to 3'):
        nano(out_indices=out_indices)


@pytest.mark.parametrize('out_indices', [(1, 0), (2, 2), (3, -1)])
def test_out_indices_must_increase(out_indices):
    with pytest.raises(ValueError, match='is not possible: allowed are stages 0 to 3'):
        nano(out_indices=out_indices)


@pytest.mark.parametrize('option', ['drop_rate', 'drop_path_rate'])
def test_rates_must_be_probabilities(option):
    with pytest.raises(ValueError, match=rf'{option}=1.5 is not possible: .*\[0, 1\)'):
        nano(**{option: 1.5})


@pytest.mark.parametrize('kernel_size', [24, 21])
def test_an_illegal_kernel_is_refused_when_the_backbone_is_built(kernel_size):
    with pytest.raises(ValueError, match=f'kernel_size={kernel_size} .*Nearest legal sizes'):
        VAN(attention=dict(type='LSKA', kernel_size=kernel_size))


def test_an_unknown_attention_names_the_known_ones():
    with pytest.raises(KeyError, match=r'LSKAX.*LKA.*LSKA.*LSKATrivial'):
        nano(attention=dict(type='LSKAX'))
    with pytest.raises(TypeError, match="dict with a 'type'"):
        nano(attention='LSKA')


def test_layer_scale_zero_builds_none():
    model = nano(layer_scale_init_value=0.0)
    assert not [name for name, _ in model.named_parameters() if 'layer_scale' in name]
    model(torch.rand(2, 3, 32, 32))


def test_initialisation_is_that_of_the_official_classification_code():
    torch.manual_seed(0)
    model = VAN('small')
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels / module.groups
            if module.weight.numel() > 500:
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
            assert not module.bias.any()
    assert torch.all(model.blocks2[0].layer_scale_1 == 1e-2)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


def test_an_init_cfg_takes_effect():
    model = nano(init_cfg=[dict(type='Constant', layer='Conv2d', val=0.5)])
    model.init_weights()
    assert torch.all(model.patch_embed1.projection.weight == 0.5)


def test_builds_are_deterministic_under_a_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(nano().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_checkpointed_blocks_give_the_same_gradients():
    plain, saving = nano().double(), nano(with_cp=True).double()
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for model in (plain, saving):
        sum((out**2).mean() for out in model(x)).backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_gradients_of_a_whole_backbone():
    torch.manual_seed(0)
    arch = dict(embed_dims=[2, 2], depths=[1, 1], ffn_ratios=[2, 2])
    model = VAN(arch, dict(type='LSKA', kernel_size=7), out_indices=(0, 1)).double().eval()
    x = torch.rand(1, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


@pytest.mark.parametrize('norm', [dict(type='GN', num_groups=2), dict(type='BN')])
def test_other_stage_norms_work(norm):
    outs = nano(stage_norm_cfg=norm).eval()(torch.rand(1, 3, 40, 33))
    assert outs[-1].shape == (1, 20, 2, 2)


def test_the_stage_norm_acts_over_the_channels_of_each_position():
    out = nano(stage_norm_cfg=dict(type='LN', eps=1e-12)).eval()(torch.rand(1, 3, 64, 64))[0]
    assert torch.allclose(out.mean(1), torch.zeros_like(out.mean(1)), atol=1e-5)
    assert torch.allclose(out.var(1, unbiased=False), torch.ones_like(out.mean(1)), atol=1e-3)


def test_bf16_autocast_trains():
    model = nano()
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(torch.rand(2, 3, 64, 64))
    sum(out.float().square().mean() for out in outs).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@compiles
def test_compiles_and_exports():
    model = nano().eval()
    x = torch.rand(1, 3, 64, 96)
    compiled = torch.compile(model, backend='eager', fullgraph=True)(x)
    exported = torch.export.export(model, (x,)).module()(x)
    for plain, first, second in zip(model(x), compiled, exported, strict=True):
        assert torch.allclose(plain, first, atol=1e-6)
        assert torch.allclose(plain, second, atol=1e-6)


def test_state_dict_round_trip():
    source, target = randomised(nano()).eval(), nano().eval()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(1, 3, 48, 40)
    assert all(torch.equal(a, b) for a, b in zip(source(x), target(x), strict=True))


# Plugins


def test_plugins_run_where_they_are_told():
    @MODELS.register_module(name='mmlska_test_Times', force=True)
    class Times(nn.Module):
        _abbr_ = 'times'

        def __init__(self, in_channels, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return x * self.factor

    def outputs(*plugins, **options):
        model = nano(plugins=list(plugins), **options).eval()
        model.load_state_dict(base.state_dict())
        return model(x)

    def plugin(factor, **options):
        return dict(cfg=dict(type=Times, factor=factor), **options)

    base = randomised(nano()).eval()
    x = torch.rand(1, 3, 64, 64)
    plain = base(x)
    doubled = outputs(plugin(2.0, stages=(False, False, False, True)))
    assert torch.equal(doubled[3], plain[3] * 2)
    assert torch.equal(doubled[2], plain[2])
    chained = outputs(
        plugin(2.0, stages=(False, False, False, True)),
        dict(
            cfg=dict(type=Times, factor=3.0, postfix='_b'),
            stages=(False, False, False, True),
            position='after_stage',
        ),
    )
    assert torch.equal(chained[3], plain[3] * 2 * 3)
    for position in ('after_attention', 'after_ffn'):
        # A branch that is multiplied by one changes nothing, by zero it is gone.
        assert torch.equal(outputs(plugin(1.0, position=position))[3], plain[3])
        assert not torch.allclose(outputs(plugin(0.0, position=position))[0], plain[0])
    gone = outputs(plugin(0.0, position='after_attention'), plugin(0.0, position='after_ffn'))
    assert torch.allclose(gone[0], base.norm1(base.patch_embed1(x)), atol=1e-6)


@pytest.mark.parametrize('position', ['after_attention', 'after_ffn', 'after_stage'])
@pytest.mark.parametrize('kind', ['LKA', 'LSKA', 'LKATrivial', 'LSKATrivial'])
def test_every_attention_layer_is_a_plugin(kind, position):
    cfg = dict(cfg=dict(type=kind, kernel_size=7), stages=(True, False, True, False))
    model = nano(plugins=[dict(cfg, position=position)])
    loss = sum(out.square().mean() for out in model(torch.rand(2, 3, 64, 64)))
    loss.backward()
    added = [p for name, p in model.named_parameters() if f'.{kind.lower()[:3]}' in name]
    assert added
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ('plugin', 'message'),
    [
        (dict(cfg=dict(type='LSKA'), position='after_conv3'), 'after_attention, after_ffn, after_'),
        (dict(cfg=dict(type='LSKA'), stages=(True,)), 'must hold 4 bools'),
        (dict(cfg=dict(type='LSKA'), stages=(1, 2, 3, 4)), 'must hold 4 bools'),
        (dict(type='LSKA'), "keys 'cfg', 'stages', 'position'"),
        (dict(cfg=dict(type='LSKA'), stage=(True,) * 4), "keys 'cfg', 'stages', 'position'"),
    ],
)
def test_a_malformed_plugin_is_refused(plugin, message):
    with pytest.raises(ValueError, match=message):
        nano(plugins=[plugin])


def test_two_plugins_of_one_name_at_one_position_are_refused():
    with pytest.raises(ValueError, match=r"both named 'lska'.*postfix"):
        nano(plugins=[dict(cfg=dict(type='LSKA')), dict(cfg=dict(type='LSKA', kernel_size=7))])


# Speed: neither the form of an operation nor the layout of a map changes a result


@pytest.mark.parametrize('kind', ['LKA', 'LSKA', 'LKATrivial', 'LSKATrivial'])
@pytest.mark.parametrize('training', [False, True])
def test_the_fast_forms_and_layouts_give_the_same_maps_and_gradients(kind, training):
    # A first stage of 2 * 16 * 48 * 64 values is large enough for all of them.
    settings = dict(NANO, embed_dims=[16, 16, 16, 16])
    torch.manual_seed(0)
    model = VAN(settings, dict(type=kind, kernel_size=11)).train(training)
    # A bias before a norm over the batch changes nothing: its gradient is rounding alone.
    parameters = [p for name, p in model.named_parameters() if 'projection.bias' not in name]
    image = torch.rand(2, 3, 192, 256)
    results = []
    for backend in ('plain', 'auto'):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with use_backend(backend):
            outs = model(image)
            generator = torch.Generator().manual_seed(1)
            loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs)
            grads = torch.autograd.grad(loss, parameters)
        model.load_state_dict(state)
        assert all(out.is_contiguous() for out in outs)
        results.append([*outs, *grads])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-4
