from pathlib import Path

import pytest
import torch
from script_runs import TOOLS, run_here

from mmlska.checkpoint import CheckpointError, read_checkpoint, to_naming, unwrap
from mmlska.conversion.checkpoint_files import convert_checkpoint
from mmlska.models import VAN

SCRIPT = TOOLS / 'model_converters' / 'to_mmlska.py'
ARCH = dict(embed_dims=[4, 6], depths=[1, 2], ffn_ratios=[2, 2.5])


def van(kind='LSKA', kernel_size=11):
    return VAN(ARCH, dict(type=kind, kernel_size=kernel_size), out_indices=(0, 1))


@pytest.fixture
def official(tmp_path):
    weights = to_naming(van().state_dict(), 'official')
    weights |= {'head.weight': torch.rand(5, 6), 'head.bias': torch.rand(5)}
    checkpoint = {'state_dict': {f'module.{k}': v for k, v in weights.items()}, 'epoch': 9}
    torch.save(checkpoint, tmp_path / 'official.pth.tar')
    return tmp_path / 'official.pth.tar', weights


def equal(first, second):
    assert list(first) == list(second)
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.pth.tar'])
@pytest.mark.parametrize('naming', ['mmlska', 'mmpretrain', 'official-detection', 'official'])
def test_there_and_back_again_nothing_is_lost(official, tmp_path, naming, suffix):
    source, weights = official
    report = convert_checkpoint(source, tmp_path / f'there{suffix}', naming)
    assert 'LSKA kernel 11 (1x5 dilated)' in report
    assert 'official classification names' in report
    assert 'left out:   epoch' in report
    convert_checkpoint(tmp_path / f'there{suffix}', tmp_path / 'back.pth', 'official')
    back = unwrap(read_checkpoint(tmp_path / 'back.pth'))
    assert equal({key: back[key] for key in weights}, weights)
    assert len(back) == len(weights)


def test_mmpretrain_names(official, tmp_path):
    convert_checkpoint(official[0], tmp_path / 'a.pth', 'mmpretrain')
    keys = set(unwrap(read_checkpoint(tmp_path / 'a.pth')))
    assert {'backbone.blocks1.0.mlp.dwconv.weight', 'head.fc.weight'} <= keys


def test_transformers_there_and_back_again(tmp_path):
    weights = to_naming(van('LKA').state_dict(), 'official')
    weights |= {'head.weight': torch.rand(5, 6), 'head.bias': torch.rand(5)}
    torch.save(weights, tmp_path / 'official.pth')
    convert_checkpoint(tmp_path / 'official.pth', tmp_path / 'there.pth', 'transformers')
    keys = set(unwrap(read_checkpoint(tmp_path / 'there.pth')))
    assert {'classifier.bias', 'van.encoder.stages.1.layers.0.mlp.in_dense.weight'} <= keys
    report = convert_checkpoint(tmp_path / 'there.pth', tmp_path / 'back.pth', 'official')
    assert 'in transformers names' in report
    assert equal(dict(unwrap(read_checkpoint(tmp_path / 'back.pth'))), weights)


@pytest.mark.parametrize('kind', ['LKA', 'LKATrivial', 'LSKATrivial'])
def test_other_kinds_are_recognised(tmp_path, kind):
    torch.save(van(kind).state_dict(), tmp_path / 'a.pth')
    report = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'official')
    assert f'{kind} kernel 11' in report


def test_the_rest_of_a_detector_is_kept(tmp_path):
    weights = to_naming(van().state_dict(), 'official-detection')
    weights = {f'backbone.{k}': v for k, v in weights.items()} | {'neck.conv.bias': torch.ones(2)}
    torch.save({'state_dict': weights}, tmp_path / 'a.pth')
    report = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert '1 of other parts' in report
    keys = set(unwrap(read_checkpoint(tmp_path / 'b.pth')))
    assert keys == {f'backbone.{key}' for key in van().state_dict()} | {'neck.conv.bias'}


def test_an_incomplete_checkpoint_is_refused_and_nothing_written(official, tmp_path):
    weights = dict(official[1])
    del weights['norm2.weight']
    torch.save(weights, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'missing in the checkpoint: norm2\.weight'):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', 'official.pth.tar']


def test_a_failed_write_leaves_the_old_file(official, tmp_path, monkeypatch):
    target = tmp_path / 'b.pth'
    target.write_text('old')

    def fail(weights, name):
        Path(name).write_text('half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        convert_checkpoint(official[0], target, force=True)
    assert target.read_text() == 'old'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b.pth', 'official.pth.tar']


def test_the_tool_converts_and_refuses_to_overwrite(official, tmp_path):
    source, _ = official
    done = run_here(SCRIPT, source, 'b.pth', cwd=tmp_path)
    assert 'recognised: a VAN with embed_dims=[4, 6]' in done.stdout
    again = run_here(SCRIPT, source, 'b.pth', cwd=tmp_path, expect=1)
    assert 'b.pth' in again.stderr
    assert '--force' in again.stderr
    run_here(SCRIPT, source, 'b.pth', '--to', 'official', '--force', cwd=tmp_path)


@pytest.mark.parametrize(
    ('target', 'message'),
    [('b.txt', 'must end in one of .pth'), ('none/b.pth', 'none'), ('c.pth', 'does not exist')],
)
def test_the_tool_says_in_one_line_what_is_wrong(official, tmp_path, target, message):
    source = official[0] if target != 'c.pth' else tmp_path / 'absent.pth'
    done = run_here(SCRIPT, source, target, cwd=tmp_path, expect=1)
    assert message in done.stderr
    assert done.stderr.count('\n') == 1


def test_another_model_is_refused(tmp_path):
    torch.save({'conv1.weight': torch.ones(1)}, tmp_path / 'resnet.pth')
    with pytest.raises(CheckpointError, match=r'holds no VAN .* but conv1\.weight'):
        convert_checkpoint(tmp_path / 'resnet.pth', tmp_path / 'b.pth')
