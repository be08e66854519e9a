import json
import os
from dataclasses import replace

import pytest
from tiny_sets import changed, good_coco, make_coco, write

from mmlska.data import quick_faults, remembered
from mmlska.data.cache import cache_folder


@pytest.fixture
def counted(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    calls = []

    def find(source):
        calls.append(source)
        return quick_faults(source)

    return find, calls


def flat(data):
    data['annotations'][1]['bbox'] = [4, 6, 0, 5]


def test_warnings_are_remembered_until_the_file_changes(counted, tmp_path):
    find, calls = counted
    source = make_coco(tmp_path / 'set')
    write(tmp_path / 'set', changed(flat))
    first, second = (remembered(source, find) for _ in range(2))
    assert first == second == quick_faults(source) and len(first) == len(calls) == 1
    os.utime(source.path, (1, 1))
    assert remembered(source, find) == first and len(calls) == 2


def test_a_changed_file_of_the_metric_is_read_again(counted, tmp_path):
    find, calls = counted
    source, truth = make_coco(tmp_path / 'set'), tmp_path / 'truth.json'
    source = replace(source, truths=(str(truth),))
    truth.write_text(json.dumps(good_coco()))
    assert remembered(source, find) == remembered(source, find) == [] and len(calls) == 1
    truth.write_text('{')
    assert remembered(source, find) != []


def test_errors_are_looked_for_again(counted, tmp_path):
    find, calls = counted
    source = make_coco(tmp_path / 'set')
    (tmp_path / 'set' / 'a.json').write_text('{')
    assert remembered(source, find) == remembered(source, find) != []
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_stops_nothing(counted, tmp_path):
    find, calls = counted
    (tmp_path / 'cache').write_text('a file in its place')
    source = make_coco(tmp_path / 'set')
    assert remembered(source, find) == remembered(source, find) == []
    assert len(calls) == 2


def test_without_a_home_the_folder_for_temporary_files_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr('os.path.expanduser', lambda path: path)
    monkeypatch.setattr('tempfile.gettempdir', lambda: str(tmp_path))
    assert cache_folder() == tmp_path / '.cache' / 'mmlska'
