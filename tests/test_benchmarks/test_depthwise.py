import pytest
import torch
from torch import nn

from benchmarks import depthwise
from mmlska.analysis import timing
from mmlska.models import VAN


def test_the_cases_are_the_depthwise_convolutions_of_the_backbone():
    model, sizes = VAN('tiny').eval(), {}
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.groups > 1 and '.0.' in name:
            conv.register_forward_hook(
                lambda conv, inputs, _, name=name: sizes.update({name: (conv, inputs[0].shape)})
            )
    with torch.no_grad():
        model(torch.rand(1, 3, 65, 96))
    cases = depthwise.list_cases(['tiny'], batch_sizes=[1], dtypes=['float32'], image_size=(65, 96))
    expected = [
        (shape, conv.kernel_size, conv.dilation[0], list(conv.padding))
        for conv, shape in sizes.values()
    ]
    listed = [(case.shape, case.kernel_size, case.dilation, case.padding) for case in cases]
    assert listed == expected


@pytest.mark.parametrize('arch', depthwise.ARCHS)
def test_widths_are_those_of_the_backbone(arch):
    settings = VAN.arch_zoo[arch]
    assert list(depthwise.ARCHS[arch].values()) == settings['embed_dims']
    assert list(depthwise.FFN_RATIOS) == settings['ffn_ratios']


def test_every_combination_is_a_case():
    assert len(depthwise.list_cases()) == 2 * 4 * 2 * 3 * 5
    maps = {(case.arch, case.shape, case.dtype) for case in depthwise.list_cases()}
    # In each stage one map for LSKA and one for the FFN.
    assert len(maps) == 2 * 4 * 2 * 3 * 2


@pytest.mark.parametrize('layout', list(depthwise.LAYOUTS))
def test_each_pass_computes_what_autograd_computes(layout):
    case = depthwise.list_cases(['tiny'], [4], [2], ['float32'], (96, 128))[2]
    found = {}
    for direction in depthwise.PASSES:
        torch.manual_seed(0)
        run = depthwise.one_pass(case, direction, torch.device('cpu'), depthwise.LAYOUTS[layout])
        found[direction] = run()
    torch.manual_seed(0)
    grad, x = torch.randn(case.shape), torch.randn(case.shape)
    weight = torch.randn(case.shape[1], 1, *case.kernel_size)
    leaves = [t.requires_grad_() for t in (x, weight, weight[:, 0, 0, 0].clone())]
    out = torch.conv2d(*leaves, padding=case.padding, dilation=case.dilation, groups=case.shape[1])
    for_x, for_weight, for_bias = torch.autograd.grad(out, leaves, grad)
    assert torch.allclose(found['forward'], out, atol=1e-5)
    assert found['forward'].is_contiguous(memory_format=depthwise.LAYOUTS[layout])
    assert found['data gradient'][1:] == (None, None)
    assert torch.allclose(found['data gradient'][0], for_x, atol=1e-5)
    assert found['weight gradient'][0] is None
    assert torch.allclose(found['weight gradient'][1], for_weight, atol=1e-4)
    assert torch.allclose(found['weight gradient'][2], for_bias, atol=1e-4)


def test_the_table_has_a_row_for_each_pass_and_its_share_of_the_copy():
    case = depthwise.list_cases(['base'], [1], [16], ['bfloat16'])[4]
    row = depthwise.Row(case, 'forward', {'contiguous': 4.0, 'channels_last': 2.0}, {}, 0.5)
    *_, line = depthwise.table([row]).splitlines()
    assert '16 x 512 x 200 x 320' in line and '3 x 3 of the FFN' in line
    assert [cell.strip() for cell in line.split('|')[-5:-1]] == ['4', '2', '0.5', '25 %']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(archs=['tini']), "architecture 'tini' is unknown: allowed are tiny"),
        (dict(stages=[0]), 'stage 0 is unknown: allowed are 1, 2, 3, 4'),
        (dict(dtypes=['half']), "dtype 'half' is unknown: allowed are float32"),
        (dict(batch_sizes=[0]), r'must be positive, but got \[0\]'),
    ],
)
def test_what_is_not_possible_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        depthwise.list_cases(**options)


def test_a_device_that_is_not_there_is_named():
    number = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"'cuda:{number}' is not there: PyTorch sees {number}"):
        timing.find_device(f'cuda:{number}')
    with pytest.raises(ValueError, match="'meta' is not measured"):
        timing.find_device('meta')


@pytest.mark.slow
def test_compiled_is_one_more_variant(small_copies):
    (case,) = depthwise.list_cases(['tiny'], [4], [1], ['float32'], (32, 32))[:1]
    rows = list(depthwise.measure([case], torch.device('cpu'), rounds=1))
    assert [row.direction for row in rows] == list(depthwise.PASSES)
    assert all(list(row.milliseconds)[-1] == 'compiled' for row in rows)
