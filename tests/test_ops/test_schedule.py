import pytest
from cascades import shapes

from mmlska.ops.depthwise_cascade.schedule import COLUMNS, ROWS, plan, plan_back

LEGAL = [3, 7, 11, 15, 19, 23, 29, 35, 41, 47, 53, 59, 65]


@pytest.mark.parametrize('kernel_size', LEGAL)
def test_each_march_of_lska_sees_exactly_the_kernel_along_its_axis(kernel_size):
    rows, columns = plan(*shapes('LSKA', kernel_size))
    assert (rows.axis, columns.axis) == (ROWS, COLUMNS)
    assert 2 * rows.reach + 1 == 2 * columns.reach + 1 == kernel_size


def test_every_convolution_is_applied_once_and_every_bias_added_once():
    marches = plan(*shapes('LSKA', 23))
    convs = [conv for march in marches for conv in (march.first, march.second)]
    assert sorted(conv.index for conv in convs) == [0, 1, 2, 3]
    # The bias of the moved convolution takes the place that it had: behind the first column.
    moved = marches[1].across
    biases = [conv.bias for conv in (*convs, moved) if conv.bias is not None]
    assert sorted(biases) == [0, 1, 2, 3]
    assert moved.index == 2
    assert marches[1].first.bias == 2


@pytest.mark.parametrize(
    'kernels',
    [
        [(5, 5)],
        [(5, 1), (1, 5)],
        [(1, 5), (1, 5)],
        [(1, 4)],
        [(1, 5), (5, 1), (1, 5)],
        [(1, 5), (5, 1), (5, 1), (1, 5)],
        [],
    ],
)
def test_other_cascades_have_no_plan(kernels):
    assert plan(kernels, [1] * len(kernels)) == ()


def test_a_kernel_of_one_position_lies_along_either_axis():
    assert [march.axis for march in plan([(1, 1), (3, 1)], [1, 1])] == [ROWS, COLUMNS]
    assert [march.axis for march in plan([(1, 3), (1, 1)], [1, 1])] == [ROWS, COLUMNS]


@pytest.mark.parametrize('kernel_size', LEGAL)
def test_what_the_backward_pass_keeps_grows_with_what_it_computes(kernel_size):
    for march in plan(*shapes('LSKA', kernel_size)):
        both = march.kept_backward(True, True)
        assert both > max(march.kept_backward(True, False), march.kept_backward(False, True))
        assert march.kept_at_least() < both


@pytest.mark.parametrize('biased', [(True,) * 4, (True, False, True, True), (False,) * 4])
@pytest.mark.parametrize('kernel_size', LEGAL)
def test_the_sums_of_both_marches_fill_the_same_columns(kernel_size, biased):
    kernels, dilations = shapes('LSKA', kernel_size)
    back = plan_back(plan(kernels, dilations), biased, (True,) * 9)
    counts = [back.columns[1 + i] for i in range(4)]
    assert counts == [max(kernel) for kernel in kernels]
    assert all(5 + i in back.columns for i, flag in enumerate(biased) if flag)
    width = sum(back.columns.values())
    summing = [step for step in back.steps if step.for_weights]
    assert [step.map for step in summing] == [1, 0]
    (*_, before, own, after), (*_, first, earlier, rest) = [step.constants for step in summing]
    assert before + own + after == first + earlier + rest == width
    assert first == after == 0
    # The bias of the second convolution reaches the third one's kernel through both marches.
    shared = counts[2] if biased[1] else 0
    assert earlier - before == shared


def test_nothing_is_computed_before_the_first_parameter_that_is_trained():
    marches = plan(*shapes('LSKA', 23))
    last_bias = [False] * 8 + [True]
    (step,) = plan_back(marches, (True,) * 4, last_bias).steps
    assert (step.map, step.for_input, step.for_weights) == (1, False, True)
    only_map = plan_back(marches, (True,) * 4, [True] + [False] * 8).steps
    assert [(s.map, s.for_input, s.for_weights) for s in only_map] == [
        (1, True, False),
        (0, True, False),
    ]
