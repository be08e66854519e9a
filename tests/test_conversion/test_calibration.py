import copy

import pytest
import torch
from torch import nn

from mmlska.conversion.calibration import (
    block_errors,
    calibrate,
    hold_out,
    output_error,
    walk_blocks,
)
from mmlska.conversion.gate_fitting import PointwiseFit, fit_cascade, run
from mmlska.conversion.images import read_images
from mmlska.conversion.warm_start import convert_van
from mmlska.models import LKA, LSKA, VAN

ARCH = dict(embed_dims=[6, 8, 10, 12], depths=[1, 2, 1, 1], ffn_ratios=[2, 2, 2, 2])
BLOCKS = ['blocks1.0', 'blocks2.0', 'blocks2.1', 'blocks3.0', 'blocks4.0']
GATES = [
    lambda: LKA(5, 11),
    lambda: LSKA(5, 11),
    lambda: LSKA(5, 23),
    lambda: LSKA(5, 17, 3),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def trained(kind, kernel_size, **options):
    """A model with weights, biases and layer scales as large as those of a trained one."""
    model = VAN(ARCH, dict(type=kind, kernel_size=kernel_size), **options).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter += 0.1 * torch.randn_like(parameter)
        if 'layer_scale' in name:
            parameter += 0.5
    return model.eval()


def converted(source, kind, kernel_size, dilation):
    attention = dict(type=kind, kernel_size=kernel_size, dilation=dilation)
    target = VAN(ARCH, attention).requires_grad_(False).eval()
    target.load_state_dict(convert_van(source.state_dict(), attention)[0])
    return target


def same(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.fixture(scope='module')
def photographs(request):
    shared = request.getfixturevalue('shared')
    folder = shared / 'data/coco_semantic_mini/images'
    if not folder.is_dir():
        pytest.skip(f'no photographs: {folder} is absent')
    return [read_images([folder / part], 64, 24) for part in ('training', 'validation')]


# The fits


def perturbed(gate):
    gate = copy.deepcopy(gate).requires_grad_(False)
    for parameter in gate.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return gate


def error_of(convs, maps, targets):
    return sum((run(convs, x) - y).square().sum() for x, y in zip(maps, targets, strict=True))


@pytest.mark.parametrize('make', GATES)
def test_no_fit_of_a_cascade_raises_the_error(make):
    wanted = [*make().double().requires_grad_(False).children()][:-1]
    cascade = [*perturbed(make().double()).children()][:-1]
    maps = [torch.randn(n, 5, 13, 10, dtype=torch.double) for n in (2, 1)]
    targets = [run(wanted, x) for x in maps]
    errors = [error_of(cascade, maps, targets)]
    for _ in range(3):
        fit_cascade(cascade, maps, targets)
        errors.append(error_of(cascade, maps, targets))
    assert errors[1] < 0.9 * errors[0]
    assert errors[0] >= errors[1] >= errors[2] >= errors[3]


@pytest.mark.parametrize('make', GATES)
def test_the_last_convolution_is_left_at_the_optimum(make):
    """Independent of the normal equations: the gradient of the error is zero there."""
    wanted = [*make().double().requires_grad_(False).children()][:-1]
    cascade = [*perturbed(make().double()).children()][:-1]
    maps = [torch.randn(4, 5, 13, 10, dtype=torch.double)]
    targets = [run(wanted, x) for x in maps]

    def gradient():
        last = cascade[-1].requires_grad_(True)
        grads = torch.autograd.grad(error_of(cascade, maps, targets), list(last.parameters()))
        last.requires_grad_(False)
        return sum(grad.abs().sum() for grad in grads)

    before = gradient()
    fit_cascade(cascade, maps, targets)
    assert gradient() < 1e-4 * before


@pytest.mark.parametrize('index', [0, 1, 2, 3])
def test_a_single_wrong_convolution_is_put_right(index):
    """With its borders: the taps and biases that follow act on every tap as they should."""
    wanted = [*perturbed(LSKA(5, 11).double()).children()][:-1]
    cascade = copy.deepcopy(wanted)
    cascade[index] = perturbed(cascade[index])
    maps = [torch.randn(3, 5, 14, 11, dtype=torch.double)]
    targets = [run(wanted, x) for x in maps]
    before = error_of(cascade, maps, targets)
    # The convolutions before it are right already, and stay so as far as they have any say.
    fit_cascade(cascade[index:], [run(cascade[:index], x) for x in maps], targets)
    assert error_of(cascade, maps, targets) < 1e-8 * before


def test_taps_that_never_meet_the_map_stay(monkeypatch):
    monkeypatch.setattr('mmlska.conversion.gate_fitting.CHUNK', 1)
    cascade = [*LSKA(5, 65).double().requires_grad_(False).children()][:-1]
    outer = cascade[2].weight[..., :3].clone()
    maps = [torch.randn(3, 5, 7, 7, dtype=torch.double)]
    fit_cascade(cascade, maps, [torch.randn(3, 5, 7, 7, dtype=torch.double)])
    assert torch.equal(cascade[2].weight[..., :3], outer)
    assert cascade[2].weight.isfinite().all()


def test_a_pointwise_fit_is_that_of_lstsq():
    conv = nn.Conv2d(4, 3, 1).requires_grad_(False)
    maps, targets = [torch.randn(2, 4, 9, 9) for _ in 'ab'], [torch.randn(2, 3, 9, 9) for _ in 'ab']
    fit = PointwiseFit(conv, maps, targets)
    fit.solve(1e-9)
    rows = torch.cat(maps).permute(0, 2, 3, 1).reshape(-1, 4)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    best = torch.linalg.lstsq(rows, torch.cat(targets).permute(0, 2, 3, 1).reshape(-1, 3)).solution
    assert torch.allclose(conv.weight[:, :, 0, 0].T, best[:4], atol=1e-5)
    assert torch.allclose(conv.bias, best[4], atol=1e-5)


def test_a_firm_pointwise_fit_stays_where_it_was():
    conv = nn.Conv2d(4, 3, 1).requires_grad_(False)
    before = copy.deepcopy(conv.state_dict())
    fit = PointwiseFit(conv, [torch.randn(2, 4, 9, 9)], [torch.randn(2, 3, 9, 9)])
    fit.solve(1e-3)
    assert not torch.allclose(conv.weight, before['weight'], atol=1e-2)
    fit.solve(1e9)
    assert torch.allclose(conv.weight, before['weight'], atol=1e-6)


# Errors of blocks


def test_a_model_has_no_error_against_itself():
    source = trained('LKA', 23)
    images = [torch.randn(2, 3, 64, 64)]
    assert block_errors(source, source, images) == dict.fromkeys(BLOCKS, 0.0)
    assert output_error(source, source, images) == 0


def test_the_error_of_a_block_is_for_the_input_of_the_sources():
    """With all blocks but one as in the source, that one alone has an error."""
    source = trained('LKA', 23)
    target = copy.deepcopy(source)
    target.blocks2[0].attn.spatial_gating_unit.conv0.bias += 1
    images = [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 64, 64)]
    errors = block_errors(source, target, images)
    assert {name for name, error in errors.items() if error} == {'blocks2.0'}
    seen = []
    source.blocks2[0].register_forward_hook(lambda _, args, output: seen.append((*args, output)))
    last = [source(image)[-1] for image in images]
    inputs, outputs = zip(*seen, strict=True)
    wanted = torch.cat(outputs)
    expected = (torch.cat([target.blocks2[0](x) for x in inputs]) - wanted).norm() / wanted.norm()
    assert errors['blocks2.0'] == pytest.approx(float(expected), rel=1e-5)
    difference = torch.cat([target(image)[-1] for image in images]) - torch.cat(last)
    expected = difference.norm() / torch.cat(last).norm()
    assert output_error(source, target, images) == pytest.approx(float(expected), rel=1e-5)


def test_the_walk_is_the_forward_pass():
    source = trained('LSKA', 11)
    images = [torch.randn(2, 3, 70, 50), torch.randn(1, 3, 70, 50)]
    *_, (name, _, outputs) = walk_blocks(source, images)
    assert name == 'blocks4.0'
    for image, output in zip(images, outputs, strict=True):
        last = source.norm4(output)
        assert torch.allclose(last, source(image)[-1], atol=1e-4)


# Refining


@pytest.mark.parametrize('number', [1, 3, 4, 9])
def test_every_fourth_image_is_held_out(number):
    images = list(torch.arange(number).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).split(8))
    fitted, held_out = hold_out(images)
    assert [int(x) for batch in held_out for x in batch[:, 0, 0, 0]] == list(range(3, number, 4))
    assert sum(map(len, fitted)) == number - number // 4


CHANGES = [
    (('LKA', 23), ('LSKA', 23, 3)),
    (('LKA', 23), ('LSKA', 11, 2)),
    (('LKA', 23), ('LSKA', 35, 3)),
    (('LSKA', 23), ('LKA', 11, 2)),
    (('LSKA', 35), ('LSKA', 7, 2)),
]


@pytest.mark.parametrize(('before', 'after'), CHANGES)
def test_no_error_rises_and_unseen_photographs_gain(photographs, before, after):
    images, others = photographs
    source = trained(*before)
    target = converted(source, *after)
    start, first = block_errors(source, target, images), block_errors(source, target, others)
    rows = list(calibrate(source, target, images))
    end, last = block_errors(source, target, images), block_errors(source, target, others)
    assert [row.block for row in rows] == BLOCKS
    for row in rows:
        assert row.before == pytest.approx(start[row.block], rel=1e-4)
        assert row.after == pytest.approx(end[row.block], rel=1e-4)
        assert row.after <= row.before
        assert row.held_out_after <= row.held_out_before
    assert sum(end.values()) < 0.9 * sum(start.values())
    assert sum(last.values()) < 0.9 * sum(first.values())


def test_only_the_attention_changes(photographs):
    source = trained('LKA', 23)
    target = converted(source, 'LSKA', 23, 3)
    before = copy.deepcopy(target.state_dict())
    list(calibrate(source, target, photographs[0][:1], sweeps=1))
    changed = {key for key, value in target.state_dict().items() if not value.equal(before[key])}
    assert changed
    assert all('.spatial_gating_unit.' in key for key in changed)


def test_what_is_exact_already_is_left_alone():
    source = trained('LKA', 23)
    target = converted(source, 'LKA', 35, 3)
    before = copy.deepcopy(target.state_dict())
    rows = list(calibrate(source, target, [torch.randn(5, 3, 64, 64)]))
    assert all(row.after <= row.before < 1e-6 for row in rows)
    assert all(
        torch.allclose(value, before[key], atol=1e-4) for key, value in target.state_dict().items()
    )


@pytest.mark.parametrize('number', [1, 5])
def test_few_images_cannot_do_harm(number):
    source = trained('LKA', 23)
    target = converted(source, 'LSKA', 11, 2)
    rows = list(calibrate(source, target, [torch.randn(number, 3, 40, 33)]))
    assert all(row.after <= row.before for row in rows)
    assert all(value.isfinite().all() for value in target.state_dict().values())


def test_a_fit_that_does_not_help_is_taken_back(monkeypatch):
    source = trained('LKA', 23)
    target = converted(source, 'LSKA', 23, 3)
    before = copy.deepcopy(target.state_dict())
    damage = lambda convs, *_: [conv.weight.mul_(5) for conv in convs]  # noqa: E731
    monkeypatch.setattr('mmlska.conversion.calibration.fit_cascade', damage)
    monkeypatch.setattr(PointwiseFit, 'solve', lambda *_: None)
    rows = list(calibrate(source, target, [torch.randn(4, 3, 64, 64)]))
    assert all(row.after == row.before for row in rows)
    assert same(before, target.state_dict())
