"""What tools/misc/test_stack.sh would run, read from its dry run."""

import shlex
import sys

import pytest
from script_runs import TOOLS, run

SCRIPT = TOOLS / 'misc' / 'test_stack.sh'
TORCH = {
    'onedl': '2.13.0',
    'onedl-oldest': '2.4.1',
    'openmmlab': '2.1.2',
    'torch-only': '2.1.2',
}


@pytest.fixture
def python(tmp_path):
    """Makes an interpreter that tells the wanted version and can do nothing else."""

    def make(version: str) -> str:
        path = tmp_path / f'python{version}'
        path.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 9\necho {version}\n')
        path.chmod(0o755)
        return str(path)

    return make


def commands(*arguments, cwd) -> list[list[str]]:
    printed = run(SCRIPT, '--dry-run', *arguments, cwd=cwd).stdout.splitlines()
    assert all(line.startswith('+ ') for line in printed)
    return [shlex.split(line[2:]) for line in printed]


def error(*arguments, cwd) -> str:
    done = run(SCRIPT, '--dry-run', *arguments, cwd=cwd, expect=2)
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize('stack', TORCH)
def test_a_stack_is_made_installed_and_tested_in_its_folder(stack, python, tmp_path):
    first, *installed, last = commands('--dir', 'mine', python('3.10'), stack, cwd=tmp_path)
    venv = tmp_path / 'mine'
    assert first == [python('3.10'), '-m', 'venv', str(venv)]
    words = {word for command in installed for word in command}
    assert {f'torch=={TORCH[stack]}', f'TORCH_SPEC=torch=={TORCH[stack]}'} & words
    assert all({f'{venv}/bin/python', f'VENV={venv}'} & set(command) for command in installed)
    assert f'{venv}/bin/python' in last and last[last.index('not slow') - 1] == '-m'
    assert not venv.exists()


def test_without_a_folder_it_is_named_after_stack_and_python(python, tmp_path):
    (*_, venv), *_ = commands(python('3.12'), 'onedl', cwd=tmp_path)
    assert venv == str(TOOLS.parent / 'work_dirs' / 'stacks' / 'onedl-py3.12')


def test_ready_wheels_reach_every_installation_and_arguments_pytest(python, tmp_path):
    (tmp_path / 'wheels').mkdir()
    links = ('--find-links', 'wheels', '--find-links', 'https://example.org/wheels')
    _, *installed, last = commands(*links, python('3.10'), 'openmmlab', '-k', 'a b', cwd=tmp_path)
    absolute = ['--find-links', str(tmp_path / 'wheels'), *links[2:]]
    for command in installed:
        place = command.index('--find-links')
        assert command[place : place + 4] == absolute
    assert last[-2:] == ['-k', 'a b']


def test_the_maintained_stack_is_what_make_installs(python, tmp_path):
    (tmp_path / 'my wheels').mkdir()
    links = ('--find-links', 'my wheels')
    _, (*making, torch, mmcv), _ = commands(*links, python('3.10'), 'onedl', cwd=tmp_path)
    assert making[:3] == ['make', 'install', f'PYTHON={python("3.10")}']
    assert torch.startswith('TORCH_ARGS=') and mmcv.startswith('MMCV_ARGS=')
    for name_and_words in (torch, mmcv):
        words = shlex.split(name_and_words.partition('=')[2])
        assert words == ['--find-links', str(tmp_path / 'my wheels')]


@pytest.mark.parametrize(
    ('stack', 'version', 'allowed'),
    [
        ('openmmlab', '3.11', '3.10'),
        ('torch-only', '3.12', '3.10 or 3.11'),
        ('onedl', '3.13', '3.10 or 3.11 or 3.12'),
    ],
)
def test_another_python_is_refused_before_anything_runs(stack, version, allowed, python, tmp_path):
    said = run(SCRIPT, python(version), stack, cwd=tmp_path, expect=2).stderr
    assert f'{stack} needs Python {allowed}' in said and f'is {version}' in said


def test_unknown_stacks_options_and_interpreters_are_named(tmp_path):
    assert "no stack 'opendl'; choose one of: onedl" in error(
        sys.executable, 'opendl', cwd=tmp_path
    )
    assert 'no option --find' in error('--find', sys.executable, 'onedl', cwd=tmp_path)
    assert '--dir needs a value' in error('--dir', cwd=tmp_path)
    assert "no interpreter 'python9'" in error('python9', 'onedl', cwd=tmp_path)
