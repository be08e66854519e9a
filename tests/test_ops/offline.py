"""Compiling kernels for GPUs without one, by the Triton of this Python or of another."""

import os
import subprocess
import sys
from pathlib import Path

# A Python with another Triton, and PyTorch beside it, see CONTRIBUTING.md.
PYTHON = os.environ.get('MMLSKA_TRITON_PYTHON', sys.executable)


def compile_kernels(script: str, cache: Path, *arguments: str) -> list[list[str]]:
    """Run one of the scripts ``compiled_*.py`` with an empty cache; the fields of each line."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(here.parents[1]), os.environ.get('PYTHONPATH', '')]),
        'TRITON_CACHE_DIR': str(cache),
        'TRITON_INTERPRET': '0',
    }
    command = [PYTHON, str(here / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split('\t') for line in done.stdout.splitlines()]
