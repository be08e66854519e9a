import subprocess
import sys

import pytest

from mmlska import shipped
from mmlska.shipped import config_root, match_configs, nearest, shipped_configs


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package folder with configs beside it, as in a checkout."""
    for name in ('van/mask-rcnn_van-b0.py', 'van_lska/fpn_tiny.py', '_base_/models/fpn.py'):
        path = tmp_path / 'configs' / name
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / 'configs' / 'van' / 'README.md').touch()
    package = tmp_path / 'mmlska'
    package.mkdir()
    monkeypatch.setattr(shipped, '__file__', str(package / 'shipped.py'))
    return tmp_path


def test_checkout(house):
    assert config_root() == house / 'configs'
    assert shipped_configs() == {
        'mask-rcnn_van-b0': house / 'configs/van/mask-rcnn_van-b0.py',
        'fpn_tiny': house / 'configs/van_lska/fpn_tiny.py',
    }


def test_installed_configs_come_first(house):
    installed = house / 'mmlska' / '.mim' / 'configs'
    (installed / 'van').mkdir(parents=True)
    (installed / 'van' / 'other.py').touch()
    assert shipped_configs() == {'other': installed / 'van' / 'other.py'}


def test_editable_links_lead_to_the_checkout(house):
    (house / 'mmlska' / '.mim').mkdir()
    (house / 'mmlska' / '.mim' / 'configs').symlink_to('../../configs')
    assert config_root() == house / 'configs'


def test_no_configs_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, '__file__', str(tmp_path / 'mmlska' / 'shipped.py'))
    with pytest.raises(FileNotFoundError, match=r'no shipped configs: .*\.mim/configs is absent'):
        config_root()


@pytest.mark.parametrize(
    ('pattern', 'names'),
    [
        ('mask-rcnn', ['mask-rcnn_van-b0']),
        ('fpn_*', ['fpn_tiny']),
        ('*.py', ['mask-rcnn_van-b0', 'fpn_tiny']),
        ('van/*', ['mask-rcnn_van-b0']),
        ('van_lska/', ['fpn_tiny']),
        ('fpn_tiny.py', ['fpn_tiny']),
    ],
)
def test_match(house, pattern, names):
    assert [path.stem for path in match_configs(pattern)] == names


def test_no_match_names_the_nearest(house):
    with pytest.raises(ValueError, match=r"no shipped config matches 'fpn_tyni'; .*fpn_tiny\?"):
        match_configs('fpn_tyni')


def test_nearest_lists_up_to_count():
    choices = ['abxde', 'abcdx', 'vwxyz']
    assert nearest('abcde', choices, count=2) == '; did you mean abxde or abcdx?'
    assert nearest('abcdX', choices) == '; did you mean abcdx?'
    assert nearest('qqq', choices) == ''


def test_command_line_prints_existing_configs():
    command = [sys.executable, '-m', 'mmlska', 'configs']
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    paths = result.stdout.split()
    assert paths == [str(path) for path in shipped_configs().values()]
    assert any(path.endswith('mask-rcnn_van-lska-tiny_fpn_1x_coco.py') for path in paths)
    assert not any('_base_' in path for path in paths)


def test_command_line_without_match():
    command = [sys.executable, '-m', 'mmlska', 'configs', 'mask-rcnn_van-lska-tny_fpn_1x_coco']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ''
    assert 'mask-rcnn_van-lska-tiny_fpn_1x_coco' in result.stderr
