import pytest
from cascades import shapes

from mmlska.ops.depthwise_cascade.schedule import COLUMNS, ROWS, plan

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
