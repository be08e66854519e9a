"""What would stumble on Windows, as far as Linux can show it.

The main commands run in processes that lack what Windows lacks, see `windows/sitecustomize.py`, and
the sources are read for what such a process would not meet.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from script_runs import DEMO, REPOSITORY, TOOLS

STAND_INS = Path(__file__).resolve().parent / 'windows'
CONFIG = Path(__file__).resolve().parent / 'configs' / 'small_retinanet.py'
SOURCES = [
    path for name in ('mmlska', 'tools', 'demo') for path in (REPOSITORY / name).rglob('*.py')
]
MODULES = {'fcntl', 'grp', 'pty', 'pwd', 'resource', 'syslog', 'termios'}
# By module, what only POSIX has of it.
NAMES = {
    'os': {
        *('fork', 'getgid', 'getgroups', 'getloadavg', 'getpgid', 'getuid', 'geteuid', 'killpg'),
        *('mkfifo', 'nice', 'sched_getaffinity', 'setsid', 'statvfs', 'sysconf', 'uname', 'wait'),
    },
    'signal': {
        *('SIGALRM', 'SIGCHLD', 'SIGHUP', 'SIGKILL', 'SIGPIPE', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'),
        *('alarm', 'pthread_kill', 'pthread_sigmask', 'sigtimedwait', 'sigwait', 'SIG_BLOCK'),
    },
}
TEXT_FILES = ('open', 'read_text', 'write_text', 'NamedTemporaryFile')
RESERVED = re.compile(r'[<>:"|?*\\]|[ .](/|$)|(^|/)(con|nul|aux|prn|com\d|lpt\d)(\.[^/]*)?(/|$)')


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a module or function, those of functions inside left out."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from own_nodes(child)


def unguarded(scope: ast.AST) -> Iterator[str]:
    """What a module or function takes from POSIX without asking whether it is there."""
    nodes = list(own_nodes(scope))
    asked = {
        ast.unparse(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'hasattr'
    }
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, 'module', None)
            imported = {module} if module else {alias.name for alias in node.names}
            yield from imported & MODULES
        elif isinstance(node, ast.Attribute):
            module = ast.unparse(node.value)
            if node.attr in NAMES.get(module, ()) and module not in asked:
                yield f'{module}.{node.attr}'


def encoding_left_open(call: ast.Call) -> bool:
    """Whether a call opens a file of text in the encoding of the machine."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    if name not in TEXT_FILES or ast.unparse(call.func) in (
        'os.open',
        'Image.open',
        'archive.open',
    ):
        return False
    given = {keyword.arg for keyword in call.keywords}
    words = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
    is_binary = any(isinstance(word, str) and re.fullmatch('[rwax+]*b[+]?', word) for word in words)
    is_default = name == 'NamedTemporaryFile' and not words
    return not (is_binary or is_default or 'encoding' in given or 'utf-8' in words)


def test_nothing_of_posix_is_taken_for_granted():
    found = {
        f'{path.relative_to(REPOSITORY)}: {name}'
        for path in SOURCES
        for tree in [tree_of(path)]
        for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]
        for name in unguarded(scope)
    }
    assert found == set()


def test_files_of_text_have_an_encoding():
    found = [
        f'{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(node)[:60]}'
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and encoding_left_open(node)
    ]
    assert found == []


def test_scripts_may_be_imported_by_worker_processes():
    for path in [*TOOLS.rglob('*.py'), DEMO, DEMO.with_name('train_demo.py')]:
        started = [node for node in tree_of(path).body if isinstance(node, (ast.Expr, ast.If))]
        guards = [ast.unparse(node.test) for node in started if isinstance(node, ast.If)]
        assert "__name__ == '__main__'" in guards, path
        calls = [node for node in started if isinstance(getattr(node, 'value', None), ast.Call)]
        assert not calls, path


def test_names_of_our_files_are_allowed():
    done = subprocess.run(['git', 'ls-files'], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('no checkout of git')
    names = done.stdout.splitlines()
    assert [name for name in names if RESERVED.search(name.lower())] == []
    assert len({name.lower() for name in names}) == len(names)


# Each script in turn, as they would be started one by one, without importing everything anew.
DRIVER = """
import runpy, sys

def main():
    for line in sys.argv[1:]:
        words = line.split('|')
        sys.argv = words
        try:
            runpy.run_path(words[0], run_name='__main__')
        except SystemExit as end:
            assert not end.code, f'{words}: {end.code}'

if __name__ == '__main__':
    main()
"""


@pytest.fixture
def run_there(scenes, tmp_path):
    """Run a script where it is as on Windows; its output, whose letters are those of Windows."""
    pytest.importorskip('mmdet')
    (tmp_path / 'data').symlink_to(scenes.parent)

    def call(*words) -> str:
        environment = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(STAND_INS), str(REPOSITORY)]),
            'PYTHONIOENCODING': 'cp1252',
            'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '-1',
        }
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        printed = (done.stdout + done.stderr).decode('cp1252')
        assert done.returncode == 0, printed[-4000:]
        return printed

    return call


@pytest.mark.slow
def test_the_main_commands_run_there(run_there, scenes, tmp_path):
    options = ['--work-dir', 'work', '--cfg-options', 'env_cfg.mp_cfg.mp_start_method=spawn']
    train = [TOOLS / 'train.py', CONFIG, *options]
    run_there(*train, 'train_dataloader.num_workers=1')
    (tmp_path / 'driver.py').write_text(DRIVER)
    check = TOOLS / 'dataset_tools' / 'check_dataset.py'
    commands = [
        [check, CONFIG, '--jobs', 2, '--sheet', 'sheets'],
        [*train, 'train_cfg.max_iters=4', 'experiment_name=resumed', '--resume'],
        [TOOLS / 'test.py', CONFIG, 'work/iter_4.pth', *options, 'experiment_name=test'],
        [DEMO, scenes / 'images' / 'val', CONFIG, 'work/iter_4.pth', '--save', 'picture', 'coco'],
        [REPOSITORY / 'mmlska' / '__main__.py', 'check'],
    ]
    printed = run_there('driver.py', *('|'.join(map(str, words)) for words in commands))
    assert (tmp_path / 'work' / 'iter_4.pth').is_file()
    assert 'resumed epoch: 0, iter: 2' in printed
    assert printed.count('coco/bbox_mAP: ') == 2
    assert len(list((tmp_path / 'outputs').glob('*.png'))) == 3
    assert 'Everything that is needed is there' in printed
