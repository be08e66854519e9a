import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmlska.ops import BACKENDS, depthwise_cascade, dispatch, use_backend

DILATIONS = [1, 3]


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


@pytest.fixture
def said(monkeypatch):
    """Collects what the dispatcher says, as pairs of form and message level."""
    messages = []
    dispatch._tell.cache_clear()
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(
        dispatch,
        'print_log',
        lambda text, logger, level: messages.append((text.split("'")[1], level)),
    )
    return messages


def forms(said):
    return [form for form, _ in said]


@pytest.fixture
def fast_always(monkeypatch):
    """The machine and the size of the map do not speak against the fast form."""
    monkeypatch.setattr(dispatch.FAST_FORMS['cpu'], 'wins', lambda *_: True)


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


def test_the_environment_chooses_and_a_with_block_overrides_it(monkeypatch, said):
    call = make((1, 2, 4, 4))
    monkeypatch.setenv('MMLSKA_OPS', 'cpu')
    run(*call)
    assert forms(said) == ['cpu']
    said.clear()
    with use_backend('plain'):
        run(*call)
        with use_backend('cpu'):
            run(*make((1, 2, 4, 5)))
        assert forms(said) == ['cpu']
        run(*call)
    assert forms(said) == ['cpu']


def test_the_choice_ends_with_its_block_also_after_an_error():
    with pytest.raises(RuntimeError, match='inside'), use_backend('cpu'):
        raise RuntimeError('inside')
    assert dispatch._chosen.get() is None


def test_it_says_once_and_at_debug_level_what_it_chose(said, fast_always):
    call = make()
    for _ in range(3):
        run(*call)
    assert said == [('cpu', 10)]


def test_tiny_maps_and_dtypes_that_gain_nothing_stay_plain(said):
    run(*make((1, 2, 4, 4)))
    run(*make(dtype=torch.float64))
    run(*make(dtype=torch.bfloat16))
    assert set(forms(said)) == {'plain'}


def test_a_large_map_takes_the_fast_form_where_it_was_measured(said, monkeypatch):
    monkeypatch.setattr(dispatch.FAST_FORMS['cpu'].platform, 'machine', lambda: 'x86_64')
    if not torch.backends.mkldnn.is_available():
        pytest.skip('this PyTorch was built without oneDNN')
    run(*make((2, 32, 64, 64)))
    assert forms(said) == ['cpu']
    monkeypatch.setattr(dispatch.FAST_FORMS['cpu'].platform, 'machine', lambda: 'aarch64')
    run(*make((2, 32, 64, 65)))
    assert forms(said) == ['cpu', 'plain']


@pytest.mark.parametrize(
    ('size', 'training', 'form'), [(5, False, 'plain'), (5, True, 'cpu'), (7, False, 'cpu')]
)
def test_short_dilated_kernels_are_plain_forward(said, monkeypatch, size, training, form):
    monkeypatch.setattr(dispatch.FAST_FORMS['cpu'].platform, 'machine', lambda: 'x86_64')
    if not torch.backends.mkldnn.is_available():
        pytest.skip('this PyTorch was built without oneDNN')
    x = torch.randn(1, 32, 96, 96, requires_grad=training)
    depthwise_cascade(x, [torch.randn(32, 1, 1, size)], [None], [3])
    assert forms(said) == [form]


def test_without_onednn_it_is_plain(said):
    with torch.backends.mkldnn.flags(enabled=False):
        run(*make())
    assert forms(said) == ['plain']


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

    monkeypatch.setattr(dispatch.FAST_FORMS['cpu'], 'run', fail)
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
