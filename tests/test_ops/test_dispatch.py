import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch_versions import compiles

from mmlska.ops import (
    BACKENDS,
    depthwise_cascade,
    dispatch,
    measured,
    record_choices,
    use_backend,
)
from mmlska.ops.depthwise_cascade import onednn

DILATIONS = [1, 3]
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='this PyTorch was built without oneDNN'
)


def make(size=(1, 8, 96, 96), dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(size, dtype=dtype)
    weights = [
        torch.randn(size[1], 1, 1, 5, dtype=dtype) / 2,
        torch.randn(size[1], 1, 1, 7).to(dtype),
    ]
    biases = [torch.randn(size[1], dtype=dtype) for _ in weights]
    return x, weights, biases


def run(x, weights, biases):
    return depthwise_cascade(x, weights, biases, DILATIONS)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No backend from outside, and nothing remembered."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    dispatch.forget_plans()


@pytest.fixture
def chosen():
    """What is chosen in the test."""
    with record_choices() as choices:
        yield choices


def forms(choices):
    return [choice.form for choice in choices]


@pytest.fixture
def fast_always(monkeypatch):
    """The machine and the size of the map do not speak against the fast form."""
    monkeypatch.setattr(onednn, 'why_slower', lambda call: '')


@pytest.mark.parametrize('name', ['plian', 'CPU', 'cuda', '', 0])
def test_an_unknown_backend_is_named_with_all_that_there_are(name):
    text = rf'{name!r}, but must be one of'
    with pytest.raises(ValueError, match=text) as error, use_backend(name):
        pass
    assert all(repr(known) in str(error.value) for known in BACKENDS)


def test_the_nearest_backend_is_proposed():
    with pytest.raises(ValueError, match=r"did you mean 'plain'"), use_backend('plian'):
        pass


def test_an_unknown_backend_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv('MMLSKA_OPS', 'gpu')
    with pytest.raises(
        ValueError, match=r"MMLSKA_OPS is 'gpu', but must be one of 'auto', 'plain'"
    ):
        run(*make())


def test_the_environment_chooses_and_a_with_block_overrides_it(monkeypatch, chosen):
    call = make((1, 2, 4, 4))
    monkeypatch.setenv('MMLSKA_OPS', 'cpu')
    run(*call)
    with use_backend('plain'):
        run(*call)
        with use_backend('cpu'):
            run(*call)
        run(*call)
    assert forms(chosen) == ['cpu', 'plain', 'cpu', 'plain']


def test_the_choice_ends_with_its_block_also_after_an_error():
    with pytest.raises(RuntimeError, match='inside'), use_backend('cpu'):
        raise RuntimeError('inside')
    assert dispatch._backend.get() is None


def test_it_says_once_for_each_signature_and_at_debug_level_what_is_faster(caplog, fast_always):
    call = make()
    with caplog.at_level('DEBUG', 'mmlska'):
        for _ in range(3):
            run(*call)
    (said,) = caplog.records
    assert said.levelname == 'DEBUG' and "('cpu',)" in said.message


def test_what_depends_on_the_parameters_is_not_remembered(chosen, fast_always):
    x, weights, biases = make()
    run(x, weights, biases)
    with pytest.raises(RuntimeError):
        run(x, [weight.double() for weight in weights], biases)
    run(x, weights, biases)
    assert forms(chosen) == ['cpu', 'plain', 'cpu']
    assert 'another dtype' in chosen[1].reason


@pytest.fixture
def asked(monkeypatch):
    """One entry for each call that the fast form was asked about, how it likes it."""
    calls, why_not = [], onednn.why_not
    monkeypatch.setattr(onednn, 'why_not', lambda *call: calls.append(call) or why_not(*call))
    return calls


@pytest.mark.parametrize('backend', ['auto', 'cpu'])
def test_a_call_of_the_same_kind_is_not_thought_about_again(asked, fast_always, chosen, backend):
    x, weights, biases = make()
    with use_backend(backend):
        run(x, weights, biases)
        run(torch.zeros_like(x), [weight + 1 for weight in weights], biases)
        with torch.inference_mode():
            run(x, weights, biases)
    assert forms(chosen) == ['cpu'] * 3 and len(asked) == 1


def turned(x, weights, biases):
    return x.contiguous(memory_format=torch.channels_last), weights, biases


KINDS_OF_CALLS = {
    'another layout': turned,
    'rows of a larger map': lambda x, w, b: (x.repeat(1, 1, 2, 1)[:, :, ::2], w, b),
    'another shape': lambda x, w, b: (x[:, :, 1:], w, b),
    'another kernel': lambda x, w, b: (x, [w[0][..., 1:-1], w[1]], b),
    'no bias': lambda x, w, b: (x, w, [None, b[1]]),
    'gradients': lambda x, w, b: (x.requires_grad_(), w, b),
    'gradients of a bias': lambda x, w, b: (x, w, [b[0], b[1].clone().requires_grad_()]),
    'a weight of another dtype': lambda x, w, b: (x, [w[0], w[1].double()], b),
    'a subclass': lambda x, w, b: (x, [w[0], w[1].as_subclass(Subclass)], b),
}


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize('change', KINDS_OF_CALLS.values(), ids=KINDS_OF_CALLS)
def test_a_call_of_another_kind_is_thought_about(asked, fast_always, change):
    calls = make(), change(*make())
    for call in calls:
        dispatch.choose(dispatch.CASCADE, *call, DILATIONS)
    number, fresh = len(asked), []
    for call in reversed(calls):
        dispatch.forget_plans()
        fresh.append(dispatch.choose(dispatch.CASCADE, *call, DILATIONS))
    again = [dispatch.choose(dispatch.CASCADE, *call, DILATIONS) for call in reversed(calls)]
    assert fresh == again
    assert number == 2 or type(calls[1][1][1]) is Subclass


def test_other_surroundings_are_another_kind_of_call(asked, fast_always, chosen):
    call = make()
    run(*call)
    with torch.autocast('cpu', torch.bfloat16):
        run(*call)
    with torch.backends.mkldnn.flags(enabled=False):
        run(*call)
    run(*call)
    assert len(asked) == 3 and forms(chosen) == ['cpu', 'plain', 'cpu', 'cpu']


def test_what_is_remembered_does_not_grow_for_ever(monkeypatch, fast_always):
    monkeypatch.setattr(dispatch, 'MOST_PLANS', 2)
    for height in range(90, 97):
        run(*make((1, 8, height, 96)))
        assert 1 <= len(dispatch._plans) <= 2


def test_what_a_captured_graph_kept_from_being_tried_is_tried_later(monkeypatch):
    reasons = ['a CUDA graph is captured', '']
    monkeypatch.setattr(dispatch, '_why_not', lambda *call: reasons.pop(0))
    monkeypatch.setattr(dispatch, '_is_captured', lambda x: len(reasons) == 1)
    found = []
    for _ in range(3):
        with use_backend('cpu'):
            found.append(dispatch._choose_eagerly(dispatch.CASCADE, *make(), DILATIONS))
    assert found == [('plain', 'a CUDA graph is captured'), ('cpu', ''), ('cpu', '')]


@pytest.mark.parametrize('backend', ['auto', 'cpu', 'plain'])
def test_what_does_not_belong_together_fails_as_in_pytorch(backend):
    x, weights, _ = make()
    with use_backend(backend):
        with pytest.raises(RuntimeError, match='channels'):
            depthwise_cascade(x, [weights[0][:4]], [None], [1])
        with pytest.raises(RuntimeError):
            depthwise_cascade(x, [weights[0][:, 0, 0]], [None], [1])
        assert depthwise_cascade(x[0], weights, [None] * 2, DILATIONS).shape == x.shape[1:]


def test_the_recorder_tells_form_map_and_reason(chosen):
    x, weights, biases = make((1, 2, 4, 4))
    run(x.contiguous(memory_format=torch.channels_last), weights, biases)
    (choice,) = chosen
    assert choice.operation == 'depthwise_cascade' and choice.form == 'plain'
    assert choice.shape == (1, 2, 4, 4) and choice.dtype == torch.float32
    assert choice.layout == 'channels_last'
    assert choice.reason == 'the map has less than 32768 elements'
    with record_choices() as inner:
        run(x, weights, biases)
    assert len(inner) == 1 and chosen[1:] == inner
    run(x, weights, biases)
    assert len(inner) == 1 and len(chosen) == 3


def test_a_fast_form_has_no_reason_against_it(chosen):
    with use_backend('cpu'):
        run(*make((1, 2, 4, 4)))
    with use_backend('plain'):
        run(*make((1, 2, 4, 4)))
    assert [(choice.form, choice.reason) for choice in chosen] == [
        ('cpu', ''),
        ('plain', "the backend is 'plain'"),
    ]


def test_tiny_maps_and_dtypes_that_gain_nothing_stay_plain(chosen):
    run(*make((1, 2, 4, 4)))
    run(*make(dtype=torch.float64))
    run(*make(dtype=torch.bfloat16))
    assert forms(chosen) == ['plain'] * 3
    assert 'not measured to be faster on ' in chosen[1].reason


@pytest.mark.parametrize(
    ('surround', 'reason'),
    [
        (lambda: torch.autocast('cpu', torch.bfloat16), 'autocast is on'),
        (lambda: FlopCounterMode(display=False), 'a dispatch mode'),
        (torch.autograd.forward_ad.dual_level, 'forward-mode'),
    ],
)
def test_a_backend_that_cannot_run_says_why_once(caplog, chosen, surround, reason):
    call = make((1, 2, 4, 4))
    with use_backend('cpu'), surround():
        for _ in range(2):
            run(*call)
    assert forms(chosen) == ['plain'] * 2
    (warning,) = [record for record in caplog.records if record.levelname == 'WARNING']
    assert "'cpu'" in warning.message and reason in warning.message
    assert reason in chosen[0].reason


def test_a_backend_of_another_device_says_so(caplog, monkeypatch, chosen):
    monkeypatch.setenv('MMLSKA_OPS', 'triton')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    run(*make((1, 2, 4, 4)))
    assert forms(chosen) == ['plain']
    assert 'it is a CPU' in chosen[0].reason or 'NVIDIA' in chosen[0].reason
    assert chosen[0].reason in caplog.text and 'MMLSKA_OPS' in caplog.text


@compiles
def test_a_compiler_hears_why_too(caplog):
    torch._dynamo.reset()
    x, square = torch.randn(1, 2, 5, 6), torch.randn(2, 1, 3, 3)
    with use_backend('triton'):
        compiled = torch.compile(
            lambda x: depthwise_cascade(x, [square], [None], [1]), backend='eager', fullgraph=True
        )
        out = compiled(x)
    assert torch.equal(out, torch.nn.functional.conv2d(x, square, padding=1, groups=2))
    (warning,) = [record for record in caplog.records if record.levelname == 'WARNING']
    assert "depthwise_cascade: the backend 'triton' was chosen" in warning.message


def test_a_compiler_leaves_the_functions_that_it_asks():
    asked = dispatch.chosen_backend
    torch._dynamo.reset()
    x, square = torch.randn(1, 2, 5, 6), torch.randn(2, 1, 3, 3)
    compiled = torch.compile(lambda x: depthwise_cascade(x, [square], [None], [1]), backend='eager')
    assert torch.equal(compiled(x), torch.nn.functional.conv2d(x, square, padding=1, groups=2))
    assert dispatch.chosen_backend is asked


@needs_onednn
@pytest.mark.parametrize(
    ('processor', 'size', 'form'),
    [
        ('AuthenticAMD', (2, 32, 64, 64), 'cpu'),
        ('GenuineIntel', (2, 32, 64, 64), 'plain'),
        ('GenuineIntel', (1, 128, 56, 72), 'cpu'),
        ('aarch64', (1, 128, 56, 72), 'plain'),
    ],
)
@pytest.mark.parametrize('training', [False, True])
def test_a_map_takes_the_fast_form_where_it_was_measured(
    chosen, monkeypatch, processor, size, form, training
):
    monkeypatch.setattr(measured, 'cpu', lambda: processor)
    x, weights, biases = make(size)
    run(x.requires_grad_(training), weights, biases)
    assert forms(chosen) == [form]
    assert form == 'cpu' or processor in chosen[0].reason or '516096' in chosen[0].reason


@needs_onednn
def test_on_an_intel_only_contiguous_maps_were_measured(chosen, monkeypatch):
    monkeypatch.setattr(measured, 'cpu', lambda: 'GenuineIntel')
    x, weights, biases = make((1, 128, 56, 72))
    run(x.contiguous(memory_format=torch.channels_last), weights, biases)
    assert forms(chosen) == ['plain']
    assert chosen[0].reason.endswith('not measured to be faster on GenuineIntel in float32')


@needs_onednn
@pytest.mark.parametrize(
    ('size', 'training', 'form'), [(5, False, 'plain'), (5, True, 'cpu'), (7, False, 'cpu')]
)
def test_short_dilated_kernels_are_plain_forward(chosen, monkeypatch, size, training, form):
    monkeypatch.setattr(measured, 'cpu', lambda: 'AuthenticAMD')
    x = torch.randn(1, 32, 96, 96, requires_grad=training)
    depthwise_cascade(x, [torch.randn(32, 1, 1, size)], [None], [3])
    assert forms(chosen) == [form]


def test_without_onednn_it_is_plain(chosen):
    with torch.backends.mkldnn.flags(enabled=False):
        run(*make())
    assert forms(chosen) == ['plain']


def test_autocast_does_what_it_does_to_convolutions(fast_always):
    x, weights, biases = make()
    with torch.autocast('cpu', torch.bfloat16):
        found = run(x, weights, biases)
        with use_backend('plain'):
            expected = run(x, weights, biases)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.fixture
def only_plain(monkeypatch):
    """A fast form that fails when it runs."""

    def fail(*_):
        raise AssertionError('the fast form ran')

    monkeypatch.setattr(onednn, 'run', fail)
    with use_backend('cpu'):
        yield
        with pytest.raises(AssertionError, match='the fast form ran'):
            run(*make())


class Cascade(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, weights, biases = make((1, 2, 4, 4))
        self.weights = torch.nn.ParameterList(weights)
        self.biases = torch.nn.ParameterList(biases)

    def forward(self, x):
        return run(x, list(self.weights), list(self.biases))


def expected_of(model, x):
    with use_backend('plain'):
        return model(x)


@compiles
def test_compiled_exported_and_traced_graphs_are_plain(only_plain):
    model, x = Cascade(), torch.randn(1, 2, 9, 10)
    torch._dynamo.reset()
    graphs = {
        'compile': torch.compile(model, backend='eager', fullgraph=True),
        'export': torch.export.export(model, (x,)).module(),
        'trace': torch.jit.trace(model, x, check_trace=False),
    }
    for name, graph in graphs.items():
        assert torch.allclose(graph(x), expected_of(model, x), atol=1e-6), name


@compiles
def test_a_compiled_step_has_no_graph_break(only_plain):
    model, x = Cascade(), torch.randn(1, 2, 9, 10)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(x)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_transforms_and_tensors_without_values_are_plain(only_plain):
    model, x = Cascade(), torch.randn(3, 1, 2, 5, 6)
    assert torch.allclose(
        torch.func.vmap(model)(x), torch.stack([expected_of(model, one) for one in x]), atol=1e-6
    )
    large = torch.randn(2, 1, 2, 128, 129)  # more than 2**15 elements each
    assert torch.func.vmap(model)(large).shape == large.shape
    gradient = torch.func.grad(lambda x: model(x).sum())(x[0])
    assert gradient.shape == x[0].shape
    tangent = torch.func.jvp(model, (x[0],), (x[1],))[1]
    assert torch.allclose(
        tangent, expected_of(model, x[1]) - expected_of(model, torch.zeros_like(x[1])), atol=1e-5
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], x[1])
        found = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
    assert torch.allclose(found, tangent, atol=1e-6)
    meta = copy.deepcopy(model).to('meta')
    assert meta(torch.empty(1, 2, 800, 800, device='meta')).shape == (1, 2, 800, 800)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x[0])).shape == x[0].shape


def test_counters_count_the_convolutions_as_they_are_written(only_plain):
    x, weights, biases = make((1, 2, 7, 8))
    with FlopCounterMode(display=False) as counter:
        run(x, weights, biases)
    assert counter.get_total_flops() == 2 * (5 + 7) * 2 * 7 * 8


def test_other_shapes_of_input_are_what_they_are_to_a_convolution(only_plain):
    x, weights, biases = make((1, 2, 7, 8))
    assert run(x[0], weights, biases).shape == (2, 7, 8)
    assert run(x[:0], weights, biases).shape == (0, 2, 7, 8)


@pytest.mark.parametrize('backend', ['auto', 'cpu', 'plain'])
def test_the_checks_of_a_tracer_hold(backend):
    model, x = Cascade(), torch.randn(1, 2, 160, 161)
    with use_backend(backend):
        traced = torch.jit.trace(model, x)
    other = torch.randn(2, 2, 9, 10)
    assert torch.allclose(traced(other), expected_of(model, other), atol=1e-6)


def test_transforms_of_large_maps_work_whatever_the_backend():
    model, x = Cascade(), torch.randn(2, 1, 2, 160, 160)
    found = torch.func.vmap(model)(x)
    assert torch.allclose(found, torch.stack([expected_of(model, one) for one in x]), atol=1e-6)
    gradient = torch.func.grad(lambda x: model(x).sum())
    assert torch.func.vmap(gradient)(x).shape == x.shape
