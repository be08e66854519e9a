"""The script that checks a data set, run as a user runs it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parent.parent / 'tools' / 'dataset_tools' / 'check_dataset.py'
CONFIG = """
default_scope = 'mmdet'
data = dict(type='CocoDataset', ann_file='a.json', data_prefix=dict(img='images'),
            metainfo=dict(classes=('screw', 'nut')))
train_dataloader = dict(dataset=data)
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Write a data set and check it; returns the exit status and what was printed."""
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'images').mkdir()
    (tmp_path / 'c.py').write_text(CONFIG)

    def call(annotation, *arguments):
        Image.new('RGB', (64, 64), 'green').save('images/a.png')
        content = dict(
            images=[dict(id=1, file_name='a.png', width=64, height=64)],
            categories=[dict(id=1, name='screw'), dict(id=2, name='nut')],
            annotations=[dict(id=7, image_id=1, category_id=1, bbox=[8, 9, 20, 30], **annotation)],
        )
        Path('a.json').write_text(json.dumps(content))
        command = [str(SCRIPT), 'c.py', '--split', 'train', '--jobs', '1', *arguments]
        monkeypatch.setattr(sys, 'argv', command)
        try:
            runpy.run_path(str(SCRIPT), run_name='__main__')
        except SystemExit as error:
            return error.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return call


def test_good_data_is_counted_and_drawn(check, tmp_path):
    status, printed = check(dict(area=600, iscrowd=0), '--sheet', 'sheets')
    assert status == 0 and 'error' not in printed.out
    assert 'train_dataloader.dataset: 1 images, a.json' in printed.out
    rows = [line.split() for line in printed.out.splitlines()]
    assert ['screw', '1', '0', '0'] in rows and ['nut', '0', '0', '0'] in rows
    assert 'warning: a.json: 1 of 2 classes have no object\n  1 x: nut' in printed.out
    with Image.open(tmp_path / 'sheets' / 'train_dataloader.dataset.jpg') as sheet:
        inside, frame = sheet.getpixel((90, 110)), sheet.getpixel((40, 110))
    assert abs(inside[1] - 128) < 12 and inside[0] < 12
    assert max(abs(a - b) for a, b in zip(inside, frame, strict=True)) > 30


@pytest.mark.parametrize('option', ['--sheet', '--fix'])
def test_a_folder_that_cannot_be_made_ends_it_before_it_has_begun(check, option):
    Path('file').touch()
    status, printed = check({}, option, 'file')
    assert status == 1 and printed.out == ''
    assert f"{option}: no file can be written into 'file' (File exists)" in printed.err


def test_faults_are_told_and_mended(check):
    status, printed = check({}, '--fix', 'mended')
    assert 'the data has faults' in status
    assert "error: a.json: lacks 'area'" in printed.out and 'annotation 7' in printed.out
    assert "lacks 'iscrowd'" in printed.out
    assert 'took the area of the box for 1 annotations: 7' in printed.out
    (entry,) = json.loads(Path('mended/train_a.json').read_text())['annotations']
    assert (entry['area'], entry['iscrowd']) == (600, 0)


def test_a_split_that_the_config_lacks_is_an_error(check, capsys):
    status, printed = check(dict(area=600, iscrowd=0), '--split', 'val')
    assert status == 1 and 'c.py has no data set for val' in printed.err
