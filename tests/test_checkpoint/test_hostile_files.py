"""Files that are not what their name says, and files made to harm whoever reads them."""

import gzip
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from routes import needs_safe_globals
from safetensors.torch import save_file

import mmlska.models  # noqa: F401
from mmlska.checkpoint import CheckpointError, read_checkpoint
from mmlska.checkpoint.downloads import cached_path

pytestmark = needs_safe_globals

WEIGHTS = {'a.weight': torch.arange(3.0)}


@pytest.mark.parametrize('name', ['a.pth', 'a.SAFETENSORS', 'a'])
def test_the_content_tells_a_safetensors_file(name, tmp_path):
    save_file(WEIGHTS, tmp_path / name)
    assert torch.equal(read_checkpoint(tmp_path / name)['a.weight'], WEIGHTS['a.weight'])


def test_a_file_of_torch_under_the_name_of_a_safetensors_file_is_told(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match=r'a\.safetensors.*rename it to \.pth'):
        read_checkpoint(tmp_path / 'a.safetensors')


def write_numpy(path):
    with path.open('wb') as file:
        np.savez(file, **{'a.weight': np.arange(3.0)})


def write_program(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), path)


@pytest.mark.parametrize(
    ('write', 'sentence'),
    [
        (lambda path: path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n'), 'git lfs'),
        (lambda path: path.write_bytes(gzip.compress(b'weights')), 'compressed: unpack it'),
        (lambda path: path.write_bytes(b'\x89HDF\r\n'), 'a file of HDF5'),
        (lambda path: path.write_bytes(b'\n<html>'), 'a page of the web'),
        (lambda path: path.write_bytes(b'{"weight_map": {}}'), 'a text of JSON'),
        (write_numpy, 'an archive of NumPy arrays'),
        (write_program, 'a program of TorchScript'),
    ],
)
def test_a_file_of_another_kind_is_told_as_such(write, sentence, tmp_path):
    write(tmp_path / 'epoch_3.pth')
    with pytest.raises(CheckpointError, match=rf'epoch_3\.pth. .*no checkpoint but .*{sentence}'):
        read_checkpoint(tmp_path / 'epoch_3.pth')


@pytest.mark.parametrize('is_zip', [True, False])
@pytest.mark.parametrize('protocol', [4, 5])
def test_a_pickle_protocol_is_not_taken_for_damage(protocol, is_zip, tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    options = dict(pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    torch.save({'state_dict': WEIGHTS}, path, **options)
    with pytest.raises(CheckpointError, match=f'pickle_protocol={protocol}.*set MMLSKA_TRUST='):
        read_checkpoint(path)
    monkeypatch.setenv('MMLSKA_TRUST', str(path))
    assert torch.equal(read_checkpoint(path)['state_dict']['a.weight'], WEIGHTS['a.weight'])


def test_a_file_url_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'a b.pth')
    url = (tmp_path / 'a b.pth').as_uri()
    assert set(read_checkpoint(url)) == set(WEIGHTS)


def make_loop(path):
    path.symlink_to(path)


def make_broken_link(path):
    path.symlink_to(path.with_name('none'))


@pytest.mark.parametrize(
    ('make', 'sentence'),
    [
        (os.mkdir, 'is a folder: name a file in it'),
        (os.mkfifo, 'is no regular file'),
        (make_loop, 'is a link that leads to no file'),
        (make_broken_link, 'is a link that leads to no file'),
    ],
)
def test_what_is_no_file_is_told_in_one_sentence(make, sentence, tmp_path):
    make(tmp_path / 'epoch_3.pth')
    with pytest.raises(CheckpointError, match=rf'epoch_3\.pth. {sentence}$'):
        read_checkpoint(tmp_path / 'epoch_3.pth')


@pytest.mark.parametrize(
    ('path', 'sentence'),
    [('', 'is empty'), ('~nobody-of-this-name/a.pth', 'there is no such home folder')],
)
def test_paths_that_name_nothing(path, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(path)


def test_an_absent_file_of_a_run_sends_nobody_to_published_weights(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_checkpoint(tmp_path / 'best_coco_bbox_mAP_epoch_3.pth')
    assert 'http' not in str(caught.value)


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_an_archive_that_would_unpack_to_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', pickle.dumps({}, 2))
        archive.writestr('a/version', '3\n')
        archive.writestr('a/data/0', bytes(10**7))
    with pytest.raises(CheckpointError, match='its parts declare'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('is_zip', [True, False])
@pytest.mark.parametrize(
    'hostile',
    [
        np.array([object()], dtype=object),
        np.zeros(1, dtype=[('a', 'O')]),
        np.zeros(1, dtype='V8'),
        Asks(np.dtype, 'O'),
        Asks(np.ndarray.__reduce__(np.empty(0))[0], np.ndarray, (2**42,), b'b'),
        Asks(bytes, 2**42),
        Asks(bytearray, 2**42),
        Asks(list, range(2**42)),
        Asks(set, range(2**42)),
        Asks(torch._utils._rebuild_tensor_v2, torch.ones(1).untyped_storage(), 0, (2**40,), (1,),
             False, {}),
    ],
    ids=['objects', 'structure', 'void', 'object type', 'array size', 'bytes size', 'zeros',
         'list size', 'set size', 'tensor size'],
)  # fmt: skip
def test_what_asks_for_addresses_or_memory_is_refused(hostile, is_zip, tmp_path):
    torch.save({'a': hostile}, tmp_path / 'a.pth', _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r'a\.pth'):
        read_checkpoint(tmp_path / 'a.pth')


def test_tensors_that_an_old_file_only_promises_are_refused(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    start = content.index(b'cpu') + 3
    # The number of values is the small integer behind the device and its place in the memo.
    at = content.index(b'K\x03', start)
    path.write_bytes(content[:at] + b'J' + struct.pack('<i', 2**31 - 1) + content[at + 2 :])
    with pytest.raises(CheckpointError, match=r'is refused: it has .* bytes, and the tensors'):
        read_checkpoint(path)


def test_an_old_file_is_read_whole(tmp_path):
    values = {
        'view': torch.arange(10.0)[2:5],
        'half': torch.ones(2).half(),
        'parameter': torch.nn.Parameter(torch.arange(3.0)),
        'integer': torch.arange(4),
        'empty': torch.empty(0),
        'range': range(3),
    }
    torch.save(values, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    read = read_checkpoint(tmp_path / 'a.pth')
    assert read.pop('range') == values.pop('range')
    for name, value in values.items():
        assert torch.equal(read[name], value) and read[name].dtype == value.dtype
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save(quantized, tmp_path / 'b.pth', _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / 'b.pth').dequantize(), quantized.dequantize())


def test_a_safetensors_header_that_is_too_long_is_no_header(tmp_path):
    (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', 2**42) + b'{}')
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_a_class_is_named_with_both_ways_out(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    torch.save({'a': Asks(os.getcwd)}, path)
    with pytest.raises(CheckpointError, match=r'getcwd.*MMLSKA_TRUST=.*a\.pth.*safetensors'):
        read_checkpoint(path)
    assert read_checkpoint(path, trust=True)['a'] == os.getcwd()
    monkeypatch.setenv('MMLSKA_TRUST', os.pathsep.join(['/none', str(path)]))
    assert read_checkpoint(path)['a'] == os.getcwd()
    other = tmp_path / 'b.pth'
    torch.save({'a': Asks(os.getcwd)}, other)
    with pytest.raises(CheckpointError, match='is refused'):
        read_checkpoint(other)


def test_every_scheme_of_mmengine_is_read_here():
    loaders = CheckpointLoader._schemes
    assert {loader.__module__ for loader in loaders.values()} == {'mmlska.checkpoint.reading'}


@pytest.mark.parametrize('name', ['open-mmlab://none', 'mmcls://none', 'pavi://none'])
def test_what_no_list_names_is_told(name):
    with pytest.raises(CheckpointError, match=name):
        CheckpointLoader.load_checkpoint(name)


def test_two_urls_of_one_file_name_are_two_files():
    first, second = (cached_path(f'https://{host}/van.pth') for host in ('a', 'b'))
    assert first != second
    assert first.suffix == '.pth'
