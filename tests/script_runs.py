"""Running scripts as a user does, and reading what they leave behind."""

import argparse
import contextlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from mmengine.utils import ManagerMixin

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / 'tools'
DEMO = REPOSITORY / 'demo' / 'image_demo.py'


def run(*command, cwd, expect=0, **environment) -> subprocess.CompletedProcess:
    """Run a script and check its exit status."""
    first = [] if str(command[0]).endswith('.sh') else [sys.executable]
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        **environment,
    }
    done = subprocess.run(
        [*first, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == expect, f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done


class Done(NamedTuple):
    """What a script printed."""

    stdout: str
    stderr: str


def all_subclasses(kind: type) -> set[type]:
    direct = set(kind.__subclasses__())
    return direct.union(*map(all_subclasses, direct))


@contextlib.contextmanager
def new_managers() -> Iterator[None]:
    """Let mmengine start without the loggers, scopes and visualizers of earlier runners."""
    kept = {kind: kind._instance_dict for kind in {ManagerMixin, *all_subclasses(ManagerMixin)}}
    for kind, instances in kept.items():
        kind._instance_dict = type(instances)()
    try:
        yield
    finally:
        for kind, instances in kept.items():
            kind._instance_dict = instances


def run_here(script: Path, *arguments, cwd: Path, expect: int = 0) -> Done:
    """Run a Python script in this process, which spares it the imports, and check its status."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    status = 0
    with (
        new_managers(),
        patch.object(sys, 'argv', [str(script), *map(str, arguments)]),
        patch.dict(os.environ, LOCAL_RANK='0', CUDA_VISIBLE_DEVICES='-1'),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.chdir(cwd)
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as error:
            status = error.code or 0
            if isinstance(status, str):
                status = print(status, file=sys.stderr) or 1
        finally:
            os.chdir(before)
    assert status == expect, f'{out.getvalue()[-2000:]}\n{err.getvalue()[-4000:]}'
    return Done(out.getvalue(), err.getvalue())


class ParsedError(Exception):
    """Carries what a script read from its command line."""


def parse_here(script: Path | str, *arguments) -> argparse.Namespace:
    """Let a script, or a module named as after `python -m`, read its command line, and stop it."""
    start = runpy.run_module if isinstance(script, str) else runpy.run_path
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise ParsedError(parse_args(parser, args, namespace))

    with (
        patch.object(sys, 'argv', [str(script), *map(str, arguments)]),
        patch.object(argparse.ArgumentParser, 'parse_args', stop),
    ):
        try:
            start(str(script), run_name='__main__')
        except ParsedError as found:
            return found.args[0]
    raise AssertionError(f'{script} read no command line')


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def logged(work_dir: Path) -> list[dict]:
    """Records of training iterations of all runs in a work dir, in the order of their time."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]


def last_log(work_dir: Path) -> str:
    return sorted(work_dir.glob('*/*.log'))[-1].read_text()
