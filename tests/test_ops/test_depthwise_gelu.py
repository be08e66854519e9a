"""The kernels run on a GPU where there is one, in Triton's interpreter where there is none."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from offline import compile_kernels

from mmlska.models import VAN
from mmlska.ops import depthwise_gelu, trial, triton_support, use_backend

triton = pytest.importorskip('triton')

from mmlska.ops.depthwise_gelu import triton_kernels, triton_op  # noqa: E402

pytestmark = pytest.mark.usefixtures('rounding_of_a_gpu')

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device('cuda', 0) if ON_GPU else torch.device('cpu')
if triton_support.why_no_triton(DEVICE):
    pytest.skip(triton_support.why_no_triton(DEVICE), allow_module_level=True)
# Size, channels and batch; interpreted kernels take their time.
SHAPES = [((25, 40), 5, 2), ((13, 17), 1, 2), ((13, 17), 33, 1), ((1, 9), 64, 2), ((1, 9), 5, 1)]
SHAPES += [((7, 1), 33, 2), ((7, 1), 1, 1), ((1, 1), 64, 1), ((1, 1), 5, 2)]
if ON_GPU:
    SIZES = [(25, 40), (13, 17), (1, 9), (7, 1), (1, 1)]
    SHAPES = list(itertools.product(SIZES, (1, 5, 33, 64, 160), (1, 2)))
LAYOUTS = [torch.contiguous_format, torch.channels_last]
layouts = pytest.mark.parametrize('layout', LAYOUTS, ids=['contiguous', 'channels_last'])
needs_gpu = pytest.mark.skipif(not ON_GPU, reason='needs a GPU')


@pytest.fixture(autouse=True)
def exact_and_by_default(monkeypatch):
    """No form is chosen from outside, float32 is float32 in convolutions on a GPU too, and the
    kernels are those that are tested: they were tried, before anything counts their calls.
    """
    monkeypatch.delenv('MMLSKA_OPS', raising=False)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    assert not trial.why_failed(DEVICE)


@pytest.fixture
def large_tiles(monkeypatch):
    """The interpreter takes as long for a large tile as for a small one; a GPU is not slowed."""
    if not ON_GPU:
        monkeypatch.setattr(triton_kernels, 'ELEMENTS', 2**14)


def make(size, channels=5, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, 1, 3, 3, generator=generator, dtype=torch.float64) / 2
    bias, shift = (
        torch.randn(channels, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return tuple(t.to(DEVICE, dtype) for t in (x, weight, bias, shift))


def grad_like(out):
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return grad.to(DEVICE, out.dtype)


def with_gradients(backend, x, *parameters, layout=torch.contiguous_format):
    """Output and the gradients of the map and the parameters, of a fixed random loss."""
    leaves = [x.clone(memory_format=layout), *(parameter.clone() for parameter in parameters)]
    leaves = [t.detach().requires_grad_() for t in leaves]
    with use_backend(backend):
        out = depthwise_gelu(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_like(out))]


def relative_error(found, expected):
    scale = expected.abs().max().clamp_min(1e-30)
    return ((found.double() - expected).abs().max() / scale).item()


def assert_equal(found, expected, tolerance):
    for value, truth in zip(found, expected, strict=True):
        assert relative_error(value, truth) <= tolerance


@pytest.mark.parametrize(('size', 'channels', 'batch'), SHAPES, ids=str)
@layouts
def test_equals_the_plain_form_with_all_gradients(size, channels, batch, layout, large_tiles):
    call = make(size, channels, batch)
    expected = with_gradients('plain', *call)
    assert_equal(with_gradients('triton', *call, layout=layout), expected, 1e-12)
    single = with_gradients('triton', *(t.float() for t in call), layout=layout)
    assert_equal(single, expected, 1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@layouts
def test_half_precision_is_as_exact_as_the_plain_form(dtype, layout, large_tiles):
    call = make((13, 17), 16, dtype=dtype)
    truth = with_gradients('plain', *(t.double() for t in call))
    plain = with_gradients('plain', *call)
    found = with_gradients('triton', *call, layout=layout)
    for value, reference, exact in zip(found, plain, truth, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, exact) <= 1.5 * relative_error(reference, exact)


@layouts
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_tiles_and_programs_fit_together(dtype, layout, monkeypatch):
    # Several tiles along each axis, the last ones beyond the border.
    monkeypatch.setattr(triton_kernels, 'MOST_DENSE', 8)
    monkeypatch.setattr(triton_kernels, 'ELEMENTS', 64 if dtype == torch.float32 else 256)
    monkeypatch.setattr(triton_kernels, 'ENOUGH_PROGRAMS', 4)
    call = make((9, 11), 9, 1, dtype=dtype)
    expected = with_gradients('plain', *(t.double() for t in call))
    found = with_gradients('triton', *call, layout=layout)
    assert_equal(found, expected, 1e-5 if dtype == torch.float32 else 1e-12)


def test_is_gelu_of_a_convolution_by_its_equation():
    x, weight, bias, shift = make((6, 7), 3)
    # The padding of the map that is shifted is zero.
    padded = F.pad(x + shift[:, None, None], (1, 1, 1, 1))
    taps = [(i, j, padded[:, :, i : i + 6, j : j + 7]) for i in range(3) for j in range(3)]
    inner = bias[:, None, None] + sum(weight[:, 0, i, j, None, None] * part for i, j, part in taps)
    expected = inner * torch.special.ndtr(inner)
    for backend in ('plain', 'triton'):
        with use_backend(backend):
            found = depthwise_gelu(x, weight, bias, shift)
        assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_beyond_the_border_a_shifted_map_is_zero_exactly(dtype, large_tiles):
    # With a map that the shift cancels, nothing but what stands for the border is left.
    shift = torch.tensor([1000.1, -3e-5, 7.77], device=DEVICE).to(dtype)
    x = -shift[None, :, None, None].expand(1, 3, 4, 5).contiguous()
    weight = torch.ones(3, 1, 3, 3, dtype=dtype, device=DEVICE)
    with use_backend('triton'):
        assert not depthwise_gelu(x, weight, None, shift).any()


def test_gelu_and_its_slope_are_exact_on_a_dense_grid(large_tiles, monkeypatch):
    monkeypatch.setattr(triton_kernels, 'MOST_DENSE', 2**14)
    x = torch.cat([torch.linspace(-14, 14, 40001), torch.logspace(-30, 30, 601)])
    x = torch.cat([x, -x]).to(DEVICE).view(1, 1, 1, -1).requires_grad_()
    weight = torch.zeros(1, 1, 3, 3, device=DEVICE)
    weight[..., 1, 1] = 1
    with use_backend('triton'):
        out = depthwise_gelu(x, weight, None)
    (grad,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double()
    chance = torch.special.ndtr(exact)
    slope = chance + exact * torch.exp(-0.5 * exact.square()) / math.sqrt(2 * math.pi)
    # Relative to what GELU lets through at most; a rounding of float32 is 6e-8.
    error = (out.detach().double() - exact * chance).abs() / exact.abs()
    assert error.max() <= 5e-7
    assert (grad.double() - slope).abs().max() <= 5e-7
    # What is left of negative values is a small number, not a difference of large ones.
    tail = (exact > -6) & (exact < -1e-20)
    assert ((out.detach().double() / (exact * chance))[tail] - 1).abs().max() <= 1e-4


def test_far_from_zero_the_gradient_is_that_of_a_step(large_tiles):
    x = torch.tensor([[-60.0, -9.0, 0.0, 9.0, 60.0]], device=DEVICE)[None, None].requires_grad_()
    weight = torch.zeros(1, 1, 3, 3, device=DEVICE)
    weight[..., 1, 1] = 1
    with use_backend('triton'):
        out = depthwise_gelu(x, weight, None)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(out.flatten().cpu(), torch.tensor([0.0, 0, 0, 9, 60]), atol=1e-6)
    assert torch.allclose(grad.flatten().cpu(), torch.tensor([0.0, 0, 0.5, 1, 1]), atol=1e-6)


@layouts
def test_weight_gradients_are_deterministic_and_keep_layouts(layout, large_tiles):
    call = make((13, 17), 8, dtype=torch.float32)
    first = with_gradients('triton', *call, layout=layout)
    kept = [t.clone() for t in call]
    second = with_gradients('triton', *call, layout=layout)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, kept, call))
    assert first[0].is_contiguous(memory_format=layout)
    assert first[1].is_contiguous(memory_format=layout)


def test_takes_maps_and_gradients_that_lie_anyhow_in_memory(large_tiles):
    x, *parameters = make((14, 12), 8)
    parameters = [parameter[1::2] for parameter in parameters]
    assert not parameters[0].is_contiguous()
    expected = with_gradients('plain', x[:, 1::2, ::2, 1::2], *parameters)
    leaf = x.requires_grad_()
    with use_backend('triton'):
        out = depthwise_gelu(leaf[:, 1::2, ::2, 1::2], *parameters)
    grad = grad_like(out)
    turned = grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    (found,) = torch.autograd.grad(out, leaf, turned, retain_graph=True)
    assert relative_error(out.detach(), expected[0]) <= 1e-12
    assert relative_error(found[:, 1::2, ::2, 1::2], expected[1]) <= 1e-12
    (constant,) = torch.autograd.grad(out.sum(), leaf)
    with use_backend('plain'):
        out = depthwise_gelu(leaf[:, 1::2, ::2, 1::2], *parameters)
    assert relative_error(constant, torch.autograd.grad(out.sum(), leaf)[0]) <= 1e-12


def test_frozen_tensors_take_no_gradients_and_change_no_others(large_tiles):
    call = make((7, 8))
    complete = with_gradients('plain', *call)[1:]
    for trained in range(4):
        leaves = [t.detach().requires_grad_(i == trained) for i, t in enumerate(call)]
        with use_backend('triton'):
            out = depthwise_gelu(*leaves)
        (found,) = torch.autograd.grad(out, [leaves[trained]], grad_like(out))
        assert relative_error(found, complete[trained]) <= 1e-12


@pytest.mark.parametrize('absent', [(2,), (3,), (2, 3)], ids=str)
def test_biases_may_be_absent(absent, large_tiles):
    call = [None if i in absent else t.requires_grad_() for i, t in enumerate(make((7, 8)))]
    leaves = [t for t in call if t is not None]
    results = []
    for backend in ('triton', 'plain'):
        with use_backend(backend):
            out = depthwise_gelu(*call)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert_equal(*results, 1e-12)


def test_gradients_of_gradients(large_tiles):
    leaves = [t.requires_grad_() for t in make((4, 3), 2, 1)]

    def run(*leaves):
        with use_backend('triton'):
            return depthwise_gelu(*leaves)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    # PyTorch's own gradients of gradients need not repeat to the last bit on a GPU.
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, nondet_tol=1e-12)


def test_recomputed_activations_give_the_same_gradients(large_tiles):
    x, *leaves = make((10, 9), dtype=torch.float32)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with use_backend('triton'):
        again = torch.utils.checkpoint.checkpoint(
            lambda x: depthwise_gelu(x, *leaves), x, use_reentrant=False
        )
        found = torch.autograd.grad(again.square().sum(), leaves)
        expected = torch.autograd.grad(depthwise_gelu(x, *leaves).square().sum(), leaves)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize('trained', [(True, True, True, True), (True, False, False, True)])
@layouts
def test_the_operators_keep_the_rules_of_torch(layout, trained, large_tiles):
    x, *parameters = make((3, 4), 3, dtype=torch.float32)
    leaves = [x.contiguous(memory_format=layout), *parameters]
    leaves = [t.detach().requires_grad_(flag) for t, flag in zip(leaves, trained, strict=True)]
    rest = [True] * 4, [1]
    torch.library.opcheck(torch.ops.mmlska.depthwise_gelu.default, (leaves, *rest))
    grad = grad_like(leaves[0]).contiguous(memory_format=layout)
    constants = [leaf.detach() for leaf in leaves]
    torch.library.opcheck(
        torch.ops.mmlska.depthwise_gelu_backward.default,
        (grad, grad.new_empty(0), constants, *rest, list(trained)),
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_map_as_it_does_for_convolutions(dtype, large_tiles):
    call = make((9, 10), dtype=torch.float32)
    truth = with_gradients('plain', *(t.double() for t in call))
    with torch.autocast(DEVICE.type, dtype):
        plain = with_gradients('plain', *call)
        found = with_gradients('triton', *call)
        operator, _ = torch.ops.mmlska.depthwise_gelu(call, [True] * 4, [1])
    assert torch.equal(operator, found[0])
    for value, reference, exact in zip(found, plain, truth, strict=True):
        assert value.dtype == reference.dtype
        assert relative_error(value, exact) <= 1.5 * relative_error(reference, exact)


class Layer(torch.nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        _, *parameters = make((1, 1), channels, dtype=torch.float32)
        self.all = torch.nn.ParameterList(parameters)

    def forward(self, x):
        return depthwise_gelu(2 * x, *self.all) + 1


@pytest.fixture
def compiled_anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize('dynamic', [False, True])
def test_a_compiler_sees_one_operator_and_its_gradient(dynamic, compiled_anew, large_tiles):
    layer, calls = Layer(), []

    def backend(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)

    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=dynamic)
    for size in [(6, 5), (8, 9)]:
        x = make(size, 4, dtype=torch.float32)[0]
        with use_backend('triton'):
            found, expected = compiled(x), layer(x)
            parameters = list(layer.parameters())
            gradients = torch.autograd.grad(found.square().sum(), parameters)
            wanted = torch.autograd.grad(expected.square().sum(), parameters)
        assert_equal([found, *gradients], [expected.double(), *wanted], 1e-6)
    assert any('mmlska' in call for call in calls)
    assert not any('conv' in call or call == 'gelu' for call in calls)


def test_an_exported_program_holds_the_operators_of_pytorch_alone(large_tiles):
    layer, x = Layer(), make((6, 5), 4, dtype=torch.float32)[0]
    height = torch.export.Dim('height', min=2, max=64)
    with use_backend('triton'):
        program = torch.export.export(layer, (x,), dynamic_shapes=({2: height},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert 'aten.gelu.default' in targets
    assert not any('mmlska' in target for target in targets)
    higher = make((9, 5), 4, dtype=torch.float32)[0]
    assert torch.allclose(program.module()(higher), layer(higher), atol=1e-5)


@needs_gpu
def test_inductor_and_cuda_graphs_run_it(compiled_anew):
    layer, x = Layer(), make((32, 40), 4, dtype=torch.float32)[0]
    with use_backend('plain'):
        expected = layer(x)
    with use_backend('triton'), torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, mode='reduce-overhead')
        for _ in range(3):
            assert torch.allclose(compiled(x), expected, atol=1e-5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        x.mul_(2)
        graph.replay()
        assert torch.allclose(out, layer(x), atol=1e-5)


@pytest.fixture
def only_plain(monkeypatch):
    """A fast form that fails when it runs."""

    def fail(*_):
        raise AssertionError('the fast form ran')

    monkeypatch.setattr(triton_op, 'run', fail)
    with use_backend('triton'):
        yield
        with pytest.raises(AssertionError, match='the fast form ran'):
            depthwise_gelu(*make((5, 6)))


def test_whoever_looks_at_operations_sees_the_plain_form(only_plain):
    layer, x = Layer(2), make((5, 6), 2, dtype=torch.float32)[0]
    with use_backend('plain'):
        expected = layer(x)
    assert torch.allclose(torch.func.vmap(layer)(x[:, None])[:, 0], expected, atol=1e-6)
    assert torch.func.grad(lambda x: layer(x).sum())(x).shape == x.shape
    assert torch.allclose(torch.jit.trace(layer, x, check_trace=False)(x), expected, atol=1e-6)
    assert layer.to('meta')(x.to('meta')).shape == x.shape


def test_the_plain_form_runs_by_name_and_wherever_the_kernels_cannot(only_plain):
    x, weight, bias, _ = make((5, 6))
    with use_backend('plain'):
        expected = depthwise_gelu(x, weight, bias)
    assert torch.equal(expected, F.gelu(F.conv2d(x, weight, bias, padding=1, groups=5)))
    assert torch.allclose(depthwise_gelu(x[0], weight, bias), expected[0])
    wide = torch.ones(5, 1, 5, 5, dtype=x.dtype, device=DEVICE)
    assert depthwise_gelu(x, wide, bias).shape == x.shape
    with pytest.raises(RuntimeError, match='weight of size'):
        depthwise_gelu(x, weight[:3], bias)


def test_an_empty_batch_is_none_the_less_one():
    x, *parameters = make((5, 6))
    leaves = [t.requires_grad_() for t in (x[:0].detach(), *parameters)]
    with use_backend('triton'):
        out = depthwise_gelu(*leaves)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert out.shape == (0, 5, 5, 6)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    assert not any(grad.any() for grad in grads)


@triton.jit
def _write_offsets(out, image, row, s_image, s_row, s_column):
    columns = triton.language.arange(0, 4)
    channels = triton.language.arange(0, 1)
    image = triton.language.program_id(0) + image
    at = triton_kernels._offsets(image, image + row, columns, channels, s_image, s_row, s_column, 1)
    triton.language.store(out + columns[:, None] + channels[None, :], at)


def test_offsets_have_64_bits():
    image, row = 3, 70_000
    s_image, s_row, s_column = 2**31 - 8, 2**20 + 3, 2**30 + 1
    out = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    _write_offsets[(1,)](out, image, row, s_image, s_row, s_column)
    start = image * s_image + (image + row) * s_row
    assert out.tolist() == [start + column * s_column for column in range(4)]


@needs_gpu
@pytest.mark.slow
def test_maps_of_more_than_2_31_elements():
    x = torch.randn(5, 512, 1024, 1024, dtype=torch.bfloat16, device=DEVICE)
    weight, bias = (t.bfloat16() for t in make((1, 1), 512)[1:3])
    with torch.no_grad():
        with use_backend('triton'):
            out = depthwise_gelu(x, weight, bias)
        with use_backend('plain'):
            expected = depthwise_gelu(x[-1:], weight, bias)
    assert torch.allclose(out[-1:], expected, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_compiled_for_gpus_every_value_has_a_register(tmp_path):
    kernels = compile_kernels('compiled_gelu.py', tmp_path)
    assert len(kernels) == 8 * 3
    assert not [kernel for kernel in kernels if int(kernel[-1])]


def small_backbone(**options):
    torch.manual_seed(0)
    arch = dict(embed_dims=[4, 8], depths=[1, 1], ffn_ratios=[2, 2])
    model = VAN(arch, out_indices=(0, 1), layer_scale_init_value=0.5, **options)
    return model.to(DEVICE)


def run_backbone(model, backend, x):
    """Outputs and the gradients of the input and of all parameters."""
    leaves = [x.detach().requires_grad_(), *model.parameters()]
    with use_backend(backend):
        outs = model(leaves[0])
        loss = sum((out * torch.linspace(-1, 1, out.shape[3], device=DEVICE)).sum() for out in outs)
        grads = torch.autograd.grad(loss, leaves)
    return [out.detach() for out in outs], list(grads)


def norm_error(found, expected):
    difference = sum((a - b).double().square().sum() for a, b in zip(found, expected, strict=True))
    return (difference / sum(b.double().square().sum() for b in expected)).sqrt().item()


@pytest.fixture
def counted(monkeypatch):
    """Counts how often the kernels of the convolution with GELU run."""
    calls, convolve = [], triton_kernels.convolve

    def count(*arguments, gelu):
        calls.append(gelu)
        # The bias of the 1x1 before is left to the kernels.
        assert (arguments[3] is not None) == gelu
        return convolve(*arguments, gelu=gelu)

    monkeypatch.setattr(triton_kernels, 'convolve', count)
    return calls


@layouts
@pytest.mark.parametrize('with_cp', [False, True])
def test_a_backbone_by_kernels_equals_the_plain_one(with_cp, layout, large_tiles, counted):
    model = small_backbone(with_cp=with_cp)
    x = torch.randn(2, 3, 33, 47, device=DEVICE).contiguous(memory_format=layout)
    expected = run_backbone(model, 'plain', x)
    assert not counted
    found = run_backbone(model, 'triton', x)
    # One in each block forward, one more where it is recomputed; one backward.
    assert counted.count(True) == 2 * (1 + with_cp) and counted.count(False) == 2
    assert norm_error(found[0], expected[0]) <= 1e-5
    assert norm_error(found[1], expected[1]) <= 1e-4


def test_a_compiled_backbone_has_no_graph_break(large_tiles, compiled_anew, counted):
    model = small_backbone()
    x = torch.randn(2, 3, 33, 47, device=DEVICE)
    expected = run_backbone(model, 'plain', x)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    leaves = [x.requires_grad_(), *model.parameters()]
    with use_backend('triton'):
        outs = compiled(leaves[0])
        loss = sum((out * torch.linspace(-1, 1, out.shape[3], device=DEVICE)).sum() for out in outs)
        grads = torch.autograd.grad(loss, leaves)
    assert counted.count(True) == 2 and counted.count(False) == 2
    assert norm_error([out.detach() for out in outs], expected[0]) <= 1e-5
    assert norm_error(grads, expected[1]) <= 1e-4


def test_a_backbone_under_autocast_is_as_exact_as_the_plain_one(large_tiles, counted):
    model = small_backbone()
    x = torch.randn(2, 3, 33, 47, device=DEVICE)
    truth = run_backbone(model, 'plain', x)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        plain = run_backbone(model, 'plain', x)
        found = run_backbone(model, 'triton', x)
    assert counted.count(True) == 2
    for value, reference, exact in zip(found, plain, truth, strict=True):
        assert [a.dtype for a in value] == [b.dtype for b in reference]
        assert norm_error(value, exact) <= 1.5 * norm_error(reference, exact)
