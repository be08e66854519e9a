import errno
import os
import tempfile

import pytest

from mmlska.engine.folders import make_folder


def test_a_folder_is_made_and_left_empty(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / 'a' / 'b', '--out')
    assert os.listdir(tmp_path / 'a' / 'b') == []


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(OSError, match=r"--out: no file can be written into .*a' \(File exists\)"):
        make_folder(tmp_path / 'a', '--out')


@pytest.mark.parametrize(('module', 'step'), [(os, 'makedirs'), (tempfile, 'NamedTemporaryFile')])
@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_what_the_disk_has_against_it_is_told(module, step, number, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, step, refuse)
    with pytest.raises(OSError, match=f'{os.strerror(number)}.*name another folder'):
        make_folder(tmp_path / 'a', '--work-dir')
