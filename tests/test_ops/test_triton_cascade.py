"""The kernels in Triton: on a GPU where there is one, else interpreted on the CPU."""

import itertools
import math

import pytest
import torch
from cascades import cast, make, relative_error, with_gradients
from offline import compile_kernels
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmlska.ops import depthwise_cascade, dispatch, trial, triton_support, use_backend
from mmlska.ops.depthwise_cascade import triton_op

pytestmark = pytest.mark.usefixtures('rounding_of_a_gpu')

DEVICE = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
if triton_support.why_no_triton(DEVICE):
    pytest.skip(
        f'no kernels on {DEVICE}: {triton_support.why_no_triton(DEVICE)}', allow_module_level=True
    )
triton_kernels = pytest.importorskip('mmlska.ops.depthwise_cascade.triton_kernels')

on_gpu = pytest.mark.skipif(DEVICE.type != 'cuda', reason='needs a GPU')
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5}
NCHW, NHWC = torch.contiguous_format, torch.channels_last
# Map, batch, channels and layout, such that each occurs with several of the others.
MAPS = [
    ((25, 40), 1, 5, NHWC),
    ((13, 17), 2, 32, NHWC),
    ((5, 13), 2, 65, NCHW),
    ((1, 9), 1, 32, NCHW),
    ((7, 1), 2, 5, NHWC),
    ((1, 1), 1, 65, NHWC),
    ((13, 17), 1, 1, NCHW),
]
LEGAL = [3, 7, 11, 15, 19, 23, 29, 35, 41, 47, 53, 59, 65]
CASES = [
    *(('LSKA', 23, *place) for place in MAPS),
    *(('LSKA', 7, *place) for place in MAPS[1:4]),
    *(('LSKATrivial', 7, *place) for place in MAPS[1:5]),
    *(('one row', 23, *place) for place in MAPS[2:4]),
    *(('one dilated column', 7, *place) for place in MAPS[3:]),
]


def runs(call):
    """Whether the kernels compute a call, and not the plain form."""
    return not triton_op.why_not(*cast(DEVICE, *call))


def typical_error(found, exact):
    """Root of the mean square. The largest error of a few values is a matter of luck."""
    return (found.to(exact) - exact).square().mean().sqrt().item()


def check(kind, kernel_size, size, batch, channels, layout, dtypes=ALLOWED):
    call = make(kind, kernel_size, channels, size, batch)
    assert runs(call)
    expected = with_gradients('plain', *call)
    for dtype in dtypes:
        found = with_gradients('triton', *cast(DEVICE, *cast(dtype, *call)), layout)
        for value, truth in zip(found, expected, strict=True):
            assert value.dtype == dtype
            assert value.device.type == DEVICE.type
            assert relative_error(value, truth) <= ALLOWED[dtype], (size, batch, channels, layout)


@pytest.fixture
def small_tiles(monkeypatch):
    """Many programs and segments even for a small map."""
    monkeypatch.setattr(triton_kernels, 'tile_shape', lambda *_: (2, 8))
    monkeypatch.setattr(triton_kernels, 'processors', lambda *_: 1000)
    forget_plans()
    yield
    forget_plans()


def forget_plans():
    triton_kernels._plan_forward.cache_clear()
    triton_kernels._plan_backward.cache_clear()


@pytest.mark.parametrize('case', CASES)
def test_equals_the_plain_form_with_all_gradients(case):
    check(*case)


@pytest.mark.parametrize('kernel_size', LEGAL)
def test_every_legal_kernel_size(kernel_size):
    check('LSKA', kernel_size, (3, 11), 1, 3, NHWC, [torch.float64])


@on_gpu
@pytest.mark.parametrize('case', MAPS)
@pytest.mark.parametrize('kernel_size', LEGAL)
def test_every_legal_kernel_size_on_every_map(kernel_size, case):
    check('LSKA', kernel_size, *case)


@pytest.mark.slow
@pytest.mark.parametrize('case', MAPS[:3])
@pytest.mark.parametrize(('kind', 'kernel_size'), [('LSKA', 65), ('LSKA', 53), ('LSKATrivial', 65)])
def test_large_kernels_on_large_maps(kind, kernel_size, case):
    check(kind, kernel_size, *case)


@pytest.mark.parametrize(
    ('kind', 'kernel_size', 'size'),
    [('LSKA', 3, (9, 2)), ('LSKA', 7, (3, 33)), ('LSKATrivial', 7, (17, 2))],
)
def test_lines_may_be_cut_into_segments_and_maps_into_tiles(small_tiles, kind, kernel_size, size):
    tiles, divide = [], triton_kernels._Tiles

    def note(*arguments):
        tiles.append(divide(*arguments))
        return tiles[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernels, '_Tiles', note)
        check(kind, kernel_size, size, 1, 9, NHWC, [torch.float64])
    length, segment = 2, 4
    assert any(tile.geometry[length] > tile.geometry[segment] for tile in tiles)
    assert all(tile.along_channels == 2 for tile in tiles)


@pytest.mark.parametrize(
    ('biased', 'trained'),
    [
        ((True, False, True, True), range(9)),
        ((False, True, False, False), range(9)),
        ((True,) * 4, [6]),
        ((True,) * 4, [3]),
        ((True,) * 4, [1, 8]),
        ((True,) * 4, [0]),
    ],
)
def test_gradients_of_some_parameters_are_those_among_all(small_tiles, biased, trained):
    x, weights, biases, dilations = cast(DEVICE, *make('LSKA', 3, 3, (5, 4), 1))
    biases = [bias if flag else None for bias, flag in zip(biases, biased, strict=True)]
    tensors = [x, *weights, *biases]
    leaves = [tensors[i].requires_grad_() for i in trained if tensors[i] is not None]
    found = []
    for backend in ('plain', 'triton'):
        with use_backend(backend):
            out = depthwise_cascade(x, weights, biases, dilations)
        found.append(torch.autograd.grad(out.square().sum(), leaves))
    for truth, value in zip(*found, strict=True):
        assert value.shape == truth.shape
        assert relative_error(value, truth) <= 1e-12


def test_the_gradients_of_all_parameters_are_one_sum(monkeypatch):
    call = cast(DEVICE, *make('LSKA', 3, 3, (5, 4), 1))
    sums, add_up = [], torch.Tensor.sum
    monkeypatch.setattr(torch.Tensor, 'sum', lambda x, *a: sums.append(x) or add_up(x, *a))
    with_gradients('triton', *call)
    assert [x.shape[1] for x in sums] == [3 * (3 * 2 + 1 * 2 + 4)]


def test_lines_are_cut_so_that_the_last_program_ends_first():
    slots = 528
    for length, reach, tiles in itertools.product([1, 9, 40, 320], [0, 1, 11, 32], [1, 50, 550]):
        number = triton_kernels.number_of_segments(length, reach, tiles, slots)
        assert number == 1 or length // number > 2 * reach

        def duration(number, length=length, reach=reach, tiles=tiles):
            segment = math.ceil(length / number)
            waves = math.ceil(tiles * math.ceil(length / segment) / slots)
            return waves * (segment + 2 * reach)

        possible = [n for n in range(1, length + 1) if length // n > 2 * reach] or [1]
        assert duration(number) == min(map(duration, possible))


def test_a_second_wave_that_is_nearly_empty_is_avoided():
    # 550 programs for 528 slots would run twice as long as one of them; shorter ones would not.
    assert triton_kernels.number_of_segments(320, 11, 550, 528) > 1
    assert triton_kernels.number_of_segments(320, 11, 528, 528) == 1
    assert triton_kernels.number_of_segments(320, 11, 10**6, 528) == 1


@pytest.mark.parametrize('channels', [1, 5, 32, 64, 65, 160, 320, 512])
@pytest.mark.parametrize('kept', [20, 100])
def test_tiles_waste_few_channels(channels, kept):
    lines, width = triton_kernels.tile_shape(channels, kept, torch.bfloat16, 'cuda')
    threads = 32 * triton_kernels.NUM_WARPS
    assert lines * width in (threads, 2 * threads)
    assert -(-channels // width) * width < max(2 * channels, channels + 32)
    assert channels % 32 or -(-channels // width) * width == channels


@pytest.mark.parametrize('axis', [0, 2, 3])
def test_maps_may_lie_beyond_what_32_bits_count(axis):
    # Memory that nobody touches costs nothing on a CPU, so that a map may be spread out.
    x, weights, biases, dilations = cast(DEVICE, *make('LSKA', 3, 2, (3, 3), dtype=torch.bfloat16))
    far = 2**31 + 16
    strides = [60, 1, 20, 4]
    strides[axis] = far
    last = sum((side - 1) * stride for side, stride in zip(x.shape, strides, strict=True))
    try:
        memory = torch.empty(last + 1, dtype=x.dtype, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f'not enough memory: {error}')
    spread = memory.as_strided(x.shape, strides)
    spread.copy_(x)
    with use_backend('triton'):
        expected = depthwise_cascade(x, weights, biases, dilations)
        assert torch.equal(depthwise_cascade(spread, weights, biases, dilations), expected)


@on_gpu
def test_maps_of_more_than_2_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip('needs 40 GiB of GPU memory')
    _, weights, biases, dilations = cast(DEVICE, *make('LSKA', 7, 64, dtype=torch.bfloat16))
    size = (2**31 // (64 * 4096) + 1, 64, 64, 64)
    x = torch.randn(size, dtype=torch.bfloat16, device=DEVICE).contiguous(memory_format=NHWC)
    weights = [weight.requires_grad_() for weight in weights]
    with use_backend('triton'):
        out = depthwise_cascade(x, weights, biases, dilations)
        last = depthwise_cascade(x[-1:], weights, biases, dilations)
        assert torch.equal(out[-1:], last)
        for_first = torch.autograd.grad(out[-1].float().square().sum(), weights)
        expected = torch.autograd.grad(last.float().square().sum(), weights)
    for found, truth in zip(for_first, expected, strict=True):
        assert relative_error(found, truth) <= 1e-2


def test_gradients_of_gradients_of_the_operator():
    call = cast(DEVICE, *make('LSKA', 3, channels=2, size=(3, 2), batch=1))
    x, weights, biases, dilations = call
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def run_operator(*tensors):
        return torch.ops.mmlska.depthwise_cascade(tensors, [True] * 9, dilations)[0]

    assert torch.autograd.gradgradcheck(run_operator, leaves, fast_mode=True)


def test_two_runs_give_the_same_bits(small_tiles):
    call = cast(DEVICE, *cast(torch.float32, *make('LSKA', 3, channels=9, size=(7, 2))))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = with_gradients('triton', *call), with_gradients('triton', *call)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    ('kind', 'kernel_size'),
    [('LKA', 7), ('LKATrivial', 7), ('dilated rows', 7), ('LSKATrivial', 99)],
)
def test_other_cascades_and_kernels_beyond_the_registers_are_plain(kind, kernel_size):
    local = 11 if kernel_size == 99 else kernel_size
    x, weights, biases, dilations = make(kind, local)
    if kernel_size == 99:
        weights = [torch.randn(3, 1, 1, 99).double(), torch.randn(3, 1, 99, 1).double()]
    call = cast(DEVICE, x, weights, biases, dilations)
    assert not runs(call)
    with use_backend('triton'):
        found = depthwise_cascade(*call)
    with use_backend('plain'):
        assert torch.equal(found, depthwise_cascade(*call))


def test_what_does_not_belong_together_fails_as_in_pytorch():
    x, weights, biases, dilations = cast(DEVICE, *make('LSKA', 7))
    with use_backend('triton'):
        with pytest.raises(RuntimeError, match='channels'):
            depthwise_cascade(x[:, :2], weights, biases, dilations)
        with pytest.raises(RuntimeError, match=r'[Tt]ype|dtype'):
            depthwise_cascade(x.float(), weights, biases, dilations)


def test_maps_without_elements():
    x, weights, biases, dilations = cast(DEVICE, *make('LSKA', 7))
    weights = [weight.requires_grad_() for weight in weights]
    with use_backend('triton'):
        out = depthwise_cascade(x[:0], weights, biases, dilations)
    assert out.shape == (0, *x.shape[1:])
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), weights))


def test_autocast_casts_the_map_and_keeps_the_parameters():
    call = cast(torch.float32, *make('LSKA', 7, channels=8, size=(9, 8)))
    truth = with_gradients('plain', *cast(torch.float64, *call))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = with_gradients('triton', *cast(DEVICE, *call))
        plain = with_gradients('plain', *cast(DEVICE, *call))
    assert found[0].dtype == torch.bfloat16
    assert {value.dtype for value in found[1:]} == {torch.float32}
    for value, reference, exact in zip(found, plain, truth, strict=True):
        assert typical_error(value, exact) <= 1.5 * typical_error(reference, exact)


class Cascade(nn.Module):
    """LSKA's cascade with the biases that a test wants."""

    def __init__(self, biased=(True, True, True, True)):
        super().__init__()
        _, weights, biases, self.dilations = make('LSKA', 7, channels=4, dtype=torch.float32)
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(b for b, flag in zip(biases, biased, strict=True) if flag)
        self.biased = biased
        self.to(DEVICE)

    def forward(self, x):
        rest = iter(self.biases)
        biases = [next(rest) if flag else None for flag in self.biased]
        return depthwise_cascade(x, list(self.weights), biases, self.dilations)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def kernels_that_work():
    """Otherwise the reference would be compared with itself."""
    assert not trial.why_failed(DEVICE)


def random_map(*size, layout=NHWC):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, generator=generator).to(DEVICE).contiguous(memory_format=layout)


def gradients(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize(
    ('biased', 'layout'), [((True,) * 4, NHWC), ((True, False, True, False), NCHW)]
)
def test_the_operator_keeps_the_rules_of_operators(biased, layout):
    model = Cascade(biased)
    x = random_map(2, 4, 5, 6, layout=layout)
    given = [x, *(p.detach() for p in model.parameters())]
    operators = torch.ops.mmlska
    forward = operators.depthwise_cascade.default
    settings = [True] * 5 + list(biased), model.dilations
    for trained in given[:2]:
        trained.requires_grad_()
        torch.library.opcheck(forward, (given, *settings))
        trained.requires_grad_(False)
    _, between = forward(given, *settings)
    needed = [i % 2 == 0 for i in range(len(given))]
    arguments = (x, between, given, *settings, needed)
    torch.library.opcheck(operators.depthwise_cascade_backward.default, arguments)


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compiled_graphs_call_the_operator_and_give_the_same(backend):
    model = Cascade((True, True, False, True))
    x = random_map(1, 4, 6, 5)
    with use_backend('triton'):
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        expected = gradients(model, x)
        found = gradients(lambda_module(compiled, model), x)
    assert all(map(torch.equal, found, expected))


def lambda_module(compiled, model):
    """A compiled model with the parameters of the one that it was made of."""
    compiled.parameters = model.parameters
    return compiled


def called_by(model, x):
    """Names of the functions in the graph that a compiler sees."""
    graphs = []

    def note(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(model, fullgraph=True, backend=note)(x)
    return {str(node.target) for node in graphs[0].graph.nodes if node.op == 'call_function'}


def test_compilers_see_what_the_backend_says(monkeypatch):
    model, x = Cascade(), random_map(1, 4, 5, 6)
    with use_backend('triton'):
        assert 'mmlska.depthwise_cascade' in called_by(model, x)
    torch._dynamo.reset()
    with use_backend('plain'):
        assert not any('mmlska' in name for name in called_by(model, x))
    torch._dynamo.reset()
    for reason in ('it was not measured', ''):
        torch._dynamo.reset()
        monkeypatch.setattr(dispatch, 'why_slower', lambda *_, reason=reason: reason)
        with use_backend('auto'):
            chosen = any('mmlska' in name for name in called_by(model, x))
        assert chosen == (not reason)


def test_compiled_once_for_maps_of_all_sizes():
    model = Cascade()
    counter = torch._dynamo.testing.CompileCounter()
    with use_backend('triton'), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
        for size in ((2, 4, 5, 6), (3, 4, 7, 5), (2, 4, 9, 4)):
            assert torch.equal(compiled(random_map(*size)), model(random_map(*size)))
    assert counter.frame_count == 1


def test_compiled_under_autocast():
    model, x = Cascade(), random_map(1, 4, 5, 6)
    with use_backend('triton'), torch.autocast(DEVICE.type, torch.bfloat16):
        out = torch.compile(model, fullgraph=True, backend='aot_eager')(x)
        expected = model(x)
        given = [x, *model.parameters()]
        direct, _ = torch.ops.mmlska.depthwise_cascade(given, [True] * 9, model.dilations)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert torch.equal(direct, expected)


def test_a_device_whose_kernels_were_measured_exports_the_operators_of_pytorch(monkeypatch):
    model, x = Cascade(), random_map(2, 4, 5, 6)
    monkeypatch.setattr(dispatch, 'why_slower', lambda *_: '')
    assert 'mmlska.depthwise_cascade' in called_by(model, x)
    torch._dynamo.reset()
    program = torch.export.export(model, (x,))
    assert 'mmlska' not in str(program.graph) and 'conv2d' in str(program.graph)


@pytest.mark.parametrize('strict', [False, True])
def test_exported_programs_hold_the_operators_of_pytorch_alone(strict, caplog):
    model, x = Cascade(), random_map(2, 4, 5, 6)
    sides = {2: torch.export.Dim('height', min=2), 3: torch.export.Dim('width', min=2)}
    dispatch._warn_once.cache_clear()
    with use_backend('triton'):
        program = torch.export.export(model, (x,), dynamic_shapes=(sides,), strict=strict)
        other = random_map(2, 4, 8, 3)
        assert torch.allclose(program.module()(other), model(other), rtol=1e-4, atol=1e-5)
        # The same model is compiled with the operator.
        assert 'mmlska.depthwise_cascade' in called_by(model, x)
    assert 'mmlska' not in str(program.graph) and 'conv2d' in str(program.graph)
    assert 'an exported program holds' in caplog.text


def test_tracers_and_transforms_see_the_plain_form(monkeypatch):
    model, x = Cascade(), random_map(3, 4, 5, 6)[:, None]
    monkeypatch.setattr(triton_op, 'run', lambda *_: pytest.fail('the kernels ran'))
    with use_backend('triton'):
        torch.func.vmap(model)(x)
        torch.func.grad(lambda x: model(x).sum())(x[0])
        torch.func.jvp(model, (x[0],), (x[1],))
        torch.jit.trace(model, x[0], check_trace=False)


def test_distributed_training_gives_the_same_gradients():
    if not torch.distributed.is_available():
        pytest.skip('this PyTorch has no torch.distributed')
    model, x = Cascade(), random_map(1, 4, 6, 5)
    with use_backend('triton'):
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        with use_backend('triton'):
            wrapped(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)


@on_gpu
def test_a_cuda_graph_replays_it():
    model, x = Cascade(), random_map(2, 4, 20, 24)
    with use_backend('triton'):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                gradients(model, x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = gradients(model, x)
        x.copy_(random_map(2, 4, 20, 24).flip(0))
        graph.replay()
        expected = gradients(model, x)
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
def test_compiled_for_gpus_every_value_has_a_register(tmp_path):
    kernels = compile_kernels('compiled_cascade.py', tmp_path, '7', '23', '65')
    assert len(kernels) == (3 + 2) * 2 * 2 * 2
    spilled = [kernel for kernel in kernels if kernel[6] != '0']
    assert not spilled
    # What a thread takes two positions of, it loads at once.
    narrow = [kernel for kernel in kernels if kernel[2] in ('7', '23') and kernel[7] != '0']
    assert not narrow
    # Forward, three programs of four warps and more fit on a multiprocessor of 65536 registers.
    forward = [kernel for kernel in kernels if kernel[4] == '_march_kernel']
    assert max(int(kernel[5]) for kernel in forward) <= 168
