import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from mmlska import __version__, environment

pytest.importorskip('setuptools')
requirements = pytest.importorskip('packaging.requirements')

REPOSITORY = Path(__file__).resolve().parent.parent
BUILT_FROM = (
    *('setup.cfg', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md'),
    *('model-index.yml', 'dataset-index.yml'),
    *('mmlska', 'configs', 'tools', 'benchmarks'),
)
LEAVINGS = ('build', 'mmlska.egg-info')
PYTHONS = ('3.10', '3.11', '3.12')


def run(*command, cwd):
    """Run a command that cannot see the checkout, and return what it printed."""
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files_below(folder):
    """Relative paths of the files below a folder, compiled ones left out."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a wheel is built from."""
    copy = tmp_path / 'checkout'
    copy.mkdir()
    for name in BUILT_FROM:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns('.mim', '__pycache__')
            )
        else:
            shutil.copy2(REPOSITORY / name, copy / name)
    return copy


def build_wheel(checkout, target):
    """Build a wheel without network and return its path."""
    options = ('--no-build-isolation', '--no-deps', '--no-index', '--wheel-dir', target)
    run(sys.executable, '-m', 'pip', 'wheel', *options, '.', cwd=checkout)
    (wheel,) = target.glob('*.whl')
    return wheel


def build(kind, checkout, target):
    """Call a hook of the build backend and return the path of what it made."""
    code = f'from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})'
    target.mkdir()
    run(sys.executable, '-c', code, cwd=checkout)
    (made,) = target.iterdir()
    return made


def install_alone(wheel, folder):
    """Install a wheel into an empty environment and return the environment's Python."""
    venv.create(folder, with_pip=False)
    python = folder / 'bin' / 'python'
    options = ('--python', python, 'install', '--no-index', '--no-deps')
    run(sys.executable, '-m', 'pip', *options, wheel, cwd=folder)
    return python


def expected_files(checkout):
    """What a wheel has to hold, its metadata aside."""
    mim = {
        f'mmlska/.mim/{name}/{path}'
        for name in ('configs', 'tools')
        for path in files_below(checkout / name)
        if not path.startswith('misc/')
    }
    package = {f'mmlska/{path}' for path in files_below(checkout / 'mmlska')}
    return package | mim | {'mmlska/.mim/model-index.yml', 'mmlska/.mim/dataset-index.yml'}


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    return {name for name in names if '.dist-info/' not in name}


@pytest.mark.slow
def test_wheel_holds_package_and_mim_contents_only(checkout, tmp_path):
    before = files_below(checkout)
    wheel = build_wheel(checkout, tmp_path / 'dist')
    assert wheel.name == f'mmlska-{__version__}-py3-none-any.whl'
    assert contents(wheel) == expected_files(checkout)
    assert not any('benchmarks' in name for name in contents(wheel))
    made = {path for path in files_below(checkout) - before if not path.startswith(LEAVINGS)}
    assert made == set()


@pytest.mark.slow
def test_second_wheel_forgets_removed_files(checkout, tmp_path):
    renamed = (checkout / 'mmlska' / 'renamed.py', checkout / 'configs' / 'van' / 'renamed.py')
    for path in renamed:
        path.touch()
    first = contents(build_wheel(checkout, tmp_path / 'first'))
    assert {'mmlska/renamed.py', 'mmlska/.mim/configs/van/renamed.py'} <= first
    for path in renamed:
        path.unlink()
    second = contents(build_wheel(checkout, tmp_path / 'second'))
    assert second == expected_files(checkout)


@pytest.mark.slow
def test_wheel_alone_in_an_empty_environment(checkout, tmp_path):
    python = install_alone(build_wheel(checkout, tmp_path / 'dist'), tmp_path / 'venv')
    show = (
        'from importlib import metadata as m; import mmlska; d = m.distribution("mmlska");'
        'print(d.metadata["Name"], d.version, d.metadata["License-File"], len(d.entry_points));'
        'print(*sorted(d.metadata.get_all("Provides-Extra")));'
        'print(mmlska.__file__)'
    )
    identity, extras, module = run(python, '-c', show, cwd=tmp_path).splitlines()
    assert identity == f'mmlska {__version__} LICENSE 0'
    assert extras.split() == [
        'analysis',
        'app',
        'coco',
        'demo',
        'dev',
        'docs',
        'export',
        'lite',
        'mim',
        'onedl',
        'openmmlab',
        'pretrain',
        'release',
        'rotate',
    ]
    mim = Path(module).parent / '.mim'
    assert mim.is_relative_to(tmp_path / 'venv')
    assert {path.name for path in mim.iterdir()} == {
        *('configs', 'tools', 'model-index.yml', 'dataset-index.yml'),
    }

    configs = run(python, '-m', 'mmlska', 'configs', cwd=tmp_path).split()
    assert len(configs) > 10
    assert all(Path(path).is_relative_to(mim / 'configs') for path in configs)
    check = subprocess.run(
        [python, '-m', 'mmlska', 'check'], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert check.returncode == 1
    assert "pip install --no-build-isolation 'mmlska[onedl]'" in check.stdout
    assert check.stderr == ''


@pytest.mark.slow
def test_source_archive_builds_the_same_wheel(checkout, tmp_path):
    archive = build('sdist', checkout, tmp_path / 'sdist')
    assert archive.name == f'mmlska-{__version__}.tar.gz'
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter='data')
    unpacked = tmp_path / f'mmlska-{__version__}'
    measuring = {f'benchmarks/{path}' for path in files_below(checkout / 'benchmarks')}
    assert 'benchmarks/__main__.py' in measuring
    assert expected_files(checkout) | measuring <= files_below(unpacked)
    assert not (checkout / 'mmlska' / '.mim').exists()
    assert contents(build_wheel(unpacked, tmp_path / 'dist')) == expected_files(checkout)


@pytest.mark.slow
def test_editable_installation_follows_the_checkout(checkout, tmp_path):
    wheel = build('editable', checkout, tmp_path / 'editable')
    python = install_alone(wheel, tmp_path / 'venv')
    (checkout / 'configs' / 'van' / 'later.py').touch()
    (later,) = run(python, '-m', 'mmlska', 'configs', 'later', cwd=tmp_path).split()
    assert later == str(checkout / 'configs' / 'van' / 'later.py')
    links = checkout / 'mmlska' / '.mim'
    assert (links / 'configs' / 'van' / 'later.py').is_file()
    assert (links / 'tools').resolve() == checkout / 'tools'
    assert (links / 'model-index.yml').resolve() == checkout / 'model-index.yml'

    (checkout / 'configs' / 'van' / 'later.py').unlink()
    packed = contents(build_wheel(checkout, tmp_path / 'dist'))
    shutil.rmtree(links)
    assert packed == expected_files(checkout)


@pytest.fixture(scope='module')
def setup_cfg():
    parser = configparser.RawConfigParser()
    parser.read(REPOSITORY / 'setup.cfg', encoding='utf-8')
    return parser


def requirement_lines(text):
    return sorted(line for line in text.splitlines() if line and not line.startswith('#'))


def test_extra_of_mim_is_the_original_set(setup_cfg):
    extras = setup_cfg['options.extras_require']
    listed = requirement_lines((REPOSITORY / 'requirements' / 'mminstall.txt').read_text())
    assert requirement_lines(extras['mim']) == listed
    assert requirement_lines(extras['openmmlab']) == listed
    names = {requirements.Requirement(line).name for line in listed}
    assert {'mmengine', 'mmcv', 'mmdet', 'mmsegmentation'} <= names


def test_the_oldest_pytorch_is_the_one_that_is_checked_for(setup_cfg):
    listed = requirement_lines(setup_cfg['options']['install_requires'])
    (torch,) = (line for line in listed if requirements.Requirement(line).name == 'torch')
    assert torch == f'torch>={environment.dotted(environment.OLDEST_TORCH)}'


def test_metadata_stands_in_setup_cfg_only(setup_cfg):
    """An old setuptools reads no other file, and any console script misleads mim."""
    assert setup_cfg['metadata']['name'] == 'mmlska'
    assert setup_cfg['metadata']['version'] == 'attr: mmlska.__version__'
    assert 'options.entry_points' not in setup_cfg
    assert not re.search(r'^\[project\b', (REPOSITORY / 'pyproject.toml').read_text(), re.M)


def pins(python):
    """Versions that the constraints choose for a version of Python."""
    chosen = {}
    for line in requirement_lines((REPOSITORY / 'requirements' / 'constraints.txt').read_text()):
        requirement = requirements.Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == '==', line
        if requirement.marker is None or requirement.marker.evaluate({'python_version': python}):
            assert requirement.name not in chosen, line
            chosen[requirement.name] = specifier.version
    return chosen


@pytest.mark.parametrize('python', PYTHONS)
def test_constraints_pin_what_the_extras_ask_for(setup_cfg, python):
    chosen = pins(python)
    # PyTorch, and Triton, whose version some builds of PyTorch dictate.
    free = {'torch', 'triton'}
    assert not free & set(chosen)
    for extra in (
        'onedl',
        'lite',
        'pretrain',
        'rotate',
        'export',
        'demo',
        'app',
        'analysis',
        'docs',
        'release',
        'dev',
    ):
        for line in requirement_lines(setup_cfg['options.extras_require'][extra]):
            requirement = requirements.Requirement(line)
            if requirement.name not in free:
                assert requirement.specifier.contains(chosen[requirement.name]), line


@pytest.mark.parametrize('python', PYTHONS)
def test_pre_commit_runs_the_pinned_linters(python):
    config = yaml.safe_load((REPOSITORY / '.pre-commit-config.yaml').read_text())
    revisions = {repo['repo'].rsplit('/', 1)[-1]: repo['rev'] for repo in config['repos']}
    assert revisions['ruff-pre-commit'] == f'v{pins(python)["ruff"]}'
    assert revisions['codespell'] == f'v{pins(python)["codespell"]}'


def test_citation():
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    assert {reference['doi'] for reference in citation['references']} >= {
        '10.1016/j.eswa.2023.121352',
        '10.1007/s41095-023-0364-2',
    }


@pytest.fixture
def make():
    if shutil.which('make') is None:
        pytest.skip('make is not installed')

    def call(*arguments):
        # A make above this one would hand down its own options.
        env = {key: value for key, value in os.environ.items() if not key.startswith('MAKE')}
        return subprocess.run(
            ['make', *arguments],
            cwd=REPOSITORY,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_make_alone_explains_itself(make):
    result = make()
    assert result.returncode == 0
    for words in ('make test', 'make demo', 'make lint', 'make clean', 'TORCH_SPEC', '5 minutes'):
        assert words in result.stdout


def test_make_refuses_other_versions_of_python(make, tmp_path):
    python = tmp_path / 'python3.9'
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18\n')
    python.chmod(0o755)
    result = make('install', f'PYTHON={python}', f'VENV={tmp_path / "venv"}')
    assert result.returncode != 0
    assert f'{python} is Python 3.9.18, but 3.10, 3.11 or 3.12 is needed' in result.stderr
    assert not (tmp_path / 'venv').exists()


def test_make_names_an_absent_python(make, tmp_path):
    result = make('install', 'PYTHON=python4.2', f'VENV={tmp_path / "venv"}')
    assert result.returncode != 0
    assert 'there is no python4.2' in result.stderr


def test_make_without_a_compiler_installs_no_operators(make):
    printed = make('--dry-run', 'demo', 'MMCV=lite', 'VENV=absent').stdout
    installs = [line for line in printed.splitlines() if ' -m pip install ' in line]
    # What mmcv-lite depends on would overwrite the maintained mmengine.
    (lite,) = [line for line in installs if 'mmcv-lite' in line]
    assert '--no-deps mmcv-lite ' in lite
    assert not any('onedl-mmcv' in line or '.[onedl' in line for line in installs)
    assert "--task 'segmentation'" in printed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['demo', 'MMCV=light'], 'MMCV=light is neither compiled nor lite'),
        (['test', 'MMCV=lite'], 'MMCV=lite is for make install, check and demo'),
    ],
)
def test_make_refuses_what_the_lite_build_is_not_for(make, arguments, message):
    result = make('--dry-run', *arguments)
    assert result.returncode != 0
    assert message in result.stderr
