"""Running scripts as a user does, and reading what they leave behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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
