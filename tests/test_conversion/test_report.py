import re
from functools import partial

import mmcv
import numpy as np
import pytest
import torch
from script_runs import TOOLS, run_here

from mmlska.checkpoint import CheckpointError, read_checkpoint, to_naming, unwrap
from mmlska.conversion.calibration import block_errors, output_error
from mmlska.conversion.checkpoint_files import build_van, convert_checkpoint
from mmlska.conversion.images import random_images, read_images
from mmlska.conversion.report import WarmStartOptions, new_attention, warm_start
from mmlska.models import VAN

SCRIPT = TOOLS / 'model_converters' / 'to_mmlska.py'
ARCH = dict(embed_dims=[4, 6], depths=[1, 2], ffn_ratios=[2, 2.5])
BLOCKS = ['blocks1.0', 'blocks2.0', 'blocks2.1']


def trained(kind='LKA', kernel_size=23, **options):
    torch.manual_seed(0)
    attention = dict(type=kind, kernel_size=kernel_size, **options)
    model = VAN(ARCH, attention, out_indices=(0, 1)).requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def lka(tmp_path):
    weights = to_naming(trained().state_dict(), 'official')
    weights |= {'head.weight': torch.rand(5, 6), 'head.bias': torch.rand(5)}
    torch.save({'state_dict': weights}, tmp_path / 'lka.pth.tar')
    return tmp_path / 'lka.pth.tar'


@pytest.fixture
def folder(tmp_path):
    """Five images of blurred noise."""
    generator = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for i in range(5):
        small = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        mmcv.imwrite(mmcv.imresize(small, (72, 54)), str(tmp_path / f'images/{i}.png'))
    return tmp_path / 'images'


def table_of(report):
    """Columns of the report's table, each a dict of numbers by row."""
    lines = report.splitlines()
    top = next(i for i, line in enumerate(lines) if re.match(r'block\s', line))
    header = re.split(r'\s{2,}', lines[top])[1:]
    rows = {}
    for line in lines[top + 1 : lines.index('', top)]:
        name, *cells = re.split(r'\s{2,}', line.strip())
        rows[name] = [float(cell.rstrip('%')) / 100 for cell in cells]
    return header, rows


# What is asked for


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (dict(attention='lska'), ('LSKA', 23, 3)),
        (dict(kernel_size=35), ('LKA', 35, 3)),
        (dict(attention='LSKA', kernel_size=11), ('LSKA', 11, 2)),
        (dict(kernel_size=23, dilation=4), ('LKA', 23, 4)),
        (dict(dilation=2), ('LKA', 23, 2)),
        (dict(), ('LKA', 23, 3)),
    ],
)
def test_what_is_left_open_stays(options, expected):
    attention = new_attention(trained().state_dict(), WarmStartOptions(**options))
    assert tuple(attention.values()) == expected


def test_another_dilation_stays_with_its_kernel_size():
    weights = trained('LSKA', 23, dilation=4).state_dict()
    assert new_attention(weights, WarmStartOptions('lka'))['dilation'] == 4
    assert new_attention(weights, WarmStartOptions('lka', 35))['dilation'] == 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(kernel_size=24), 'kernel_size=24 .* Nearest legal sizes: 23 and 29'),
        (dict(kernel_size=23, dilation=5), 'kernel_size=23 with dilation=5 .* 19 and 29'),
        (dict(attention='eca'), "attention 'eca' is unknown: allowed are lka, lska"),
    ],
)
def test_illegal_attentions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        warm_start(trained().state_dict(), WarmStartOptions(**options))


# The report


def test_the_report_tells_energy_and_error_of_each_block():
    source = trained()
    options = WarmStartOptions('lska', 35, image_size=48, seed=3)
    weights, report = warm_start(source.state_dict(), options)
    target, images = build_van(weights).eval(), random_images(48, 8, 3)
    header, rows = table_of(report)
    assert header == ['energy local', 'energy dilated', 'error']
    assert list(rows) == [*BLOCKS, 'mean', 'last map']
    errors = block_errors(source, target, images)
    for block, error in errors.items():
        assert rows[block][2] == pytest.approx(error, rel=0.01)
        assert all(0 < energy < 1 for energy in rows[block][:2])
    assert rows['mean'][2] == pytest.approx(sum(errors.values()) / 3, rel=0.01)
    assert rows['last map'] == [pytest.approx(output_error(source, target, images), rel=0.01)]
    whole = source.blocks1[0].attn.spatial_gating_unit.conv0.weight
    values = torch.linalg.svdvals(whole).square()
    assert rows['blocks1.0'][0] == pytest.approx(float(values[..., 0].sum() / values.sum()), 0.01)
    assert 'LSKA kernel 35 (1x11 dilated) with dilation 3' in report
    assert 'start for fine-tuning, not the published model' in report
    assert '8 images of noise' in report


def test_an_exact_change_is_reported_as_such():
    _, report = warm_start(trained().state_dict(), WarmStartOptions(kernel_size=53, image_size=48))
    _, rows = table_of(report)
    assert rows['mean'][:2] == [1, 1]
    assert rows['mean'][2] < 1e-6
    assert rows['last map'][0] < 1e-6


def test_given_images_are_measured(folder):
    source = trained()
    options = WarmStartOptions('lska', 11, images=[folder, folder], image_size=48)
    weights, report = warm_start(source.state_dict(), options)
    header, rows = table_of(report)
    assert header == ['energy composed', 'error']
    images = read_images([folder, folder], 48)
    errors = block_errors(source, build_van(weights).eval(), images)
    assert rows['blocks2.1'][1] == pytest.approx(errors['blocks2.1'], rel=0.01)
    assert f'10 images of {folder}, {folder}' in report


@pytest.mark.parametrize('others', [[], ['images']])
def test_refining_is_reported_before_and_after(folder, others):
    source = trained()
    others = [folder for _ in others]
    options = WarmStartOptions('lska', 23, calibrate=folder, images=others, image_size=48)
    plain, _ = warm_start(source.state_dict(), options._replace(calibrate=None))
    weights, report = warm_start(source.state_dict(), options)
    header, rows = table_of(report)
    columns = ['before', 'after', 'held out before', 'held out after']
    columns += ['other before', 'other after'] if others else []
    assert header == ['energy local', 'energy dilated', *columns]
    images = read_images([folder], 48)
    for model, column in ((plain, 2), (weights, 3)):
        target = build_van(model).eval()
        errors = block_errors(source, target, images)
        for block, error in errors.items():
            assert rows[block][column] == pytest.approx(error, rel=0.01)
        last = output_error(source, target, images)
        assert rows['last map'][column - 2] == pytest.approx(last, rel=0.01)
    for block in BLOCKS:
        assert rows[block][3] <= rows[block][2]
        assert rows[block][5] <= rows[block][4]
    assert rows['mean'][3] < rows['mean'][2]
    assert '5 images of' in report
    assert 'held out: on 1 of them' in report


def test_half_precision_stays_half_precision(folder):
    weights = {key: value.half() for key, value in trained().state_dict().items()}
    options = WarmStartOptions('lska', 23, calibrate=folder, image_size=48)
    new_weights, _ = warm_start(weights, options)
    assert {value.dtype for value in new_weights.values()} == {torch.float16}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(calibrate='none'), "the folder 'none' of images does not exist"),
        (dict(images=[SCRIPT.parent]), 'model_converters.* holds no image'),
        (dict(image_size=0), 'size of images must be positive'),
    ],
)
def test_bad_folders_are_named(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        warm_start(trained().state_dict(), WarmStartOptions('lska', **options))


# Files


@pytest.mark.parametrize(
    ('naming', 'suffix'),
    [('mmlska', '.pth'), ('official', '.safetensors'), ('official-detection', '.pth')],
)
def test_a_converted_file_loads_whole(lka, tmp_path, naming, suffix):
    target = tmp_path / f'lska{suffix}'
    change = partial(warm_start, options=WarmStartOptions('lska', 35, image_size=32))
    report = convert_checkpoint(lka, target, naming, change=change)
    assert 'LKA kernel 23 (7x7 dilated), in official classification names' in report
    assert list(table_of(report)[1]) == [*BLOCKS, 'mean', 'last map']
    weights = unwrap(read_checkpoint(target))
    assert 'head.weight' in weights
    model = VAN(ARCH, dict(type='LSKA', kernel_size=35), out_indices=(0, 1))
    model.load_state_dict(weights)
    expected, _ = change(trained().state_dict())
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_the_tool_refines(lka, folder, tmp_path):
    options = ['--dilation', 2, '--calibrate', folder, '--images', folder, '--images', folder]
    options += ['--image-size', 40, '--max-images', 4]
    done = run_here(SCRIPT, lka, 'a.pth', *options, cwd=tmp_path)
    header, rows = table_of(done.stdout)
    assert header[0] == 'energy composed'
    assert rows['mean'][2] < rows['mean'][1]
    assert '4 images of' in done.stdout
    assert 'refining, 3 blocks' in done.stderr
    assert 'LKA kernel 23 (11x11 dilated) with dilation 2' in done.stdout


@pytest.mark.parametrize(
    ('options', 'status', 'message'),
    [
        (['--kernel-size', 24], 1, 'Nearest legal sizes: 23 and 29'),
        (['--images', '.'], 2, '--calibrate and --images need --attention, --kernel-size or'),
        (['--attention', 'eca'], 2, 'invalid choice'),
    ],
)
def test_the_tool_says_what_is_wrong_and_writes_nothing(lka, tmp_path, options, status, message):
    done = run_here(SCRIPT, lka, 'a.pth', *options, cwd=tmp_path, expect=status)
    assert message in done.stderr
    assert not (tmp_path / 'a.pth').exists()


@pytest.mark.parametrize('what', ['incomplete', 'superfluous', 'not finite', 'trivial'])
def test_a_bad_source_is_refused_and_nothing_written(tmp_path, what):
    weights = trained('LKATrivial' if what == 'trivial' else 'LKA').state_dict()
    if what == 'incomplete':
        del weights['norm2.weight']
    if what == 'superfluous':
        weights['blocks1.0.attn.extra.weight'] = torch.ones(1)
    if what == 'not finite':
        weights['blocks1.0.attn.spatial_gating_unit.conv0.bias'][0] = float('inf')
    torch.save(weights, tmp_path / 'a.pth')
    messages = {
        'incomplete': r'missing in the checkpoint: norm2\.weight',
        'superfluous': r'superfluous in the checkpoint: blocks1\.0\.attn\.extra',
        'not finite': r'conv0\.bias holds values that are not finite',
        'trivial': 'only LKA and LSKA can be turned .* LKATrivial kernel 23',
    }

    change = partial(warm_start, options=WarmStartOptions('lska', image_size=32))
    with pytest.raises(CheckpointError, match=messages[what]):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', change=change)
    assert not (tmp_path / 'b.pth').exists()


def test_a_change_that_does_not_fit_is_not_written(lka, tmp_path):
    def damage(backbone):
        del backbone['norm2.weight']
        return backbone, 'done'

    with pytest.raises(CheckpointError, match=r'missing in the checkpoint: norm2\.weight'):
        convert_checkpoint(lka, tmp_path / 'b.pth', change=damage)
    assert not (tmp_path / 'b.pth').exists()
