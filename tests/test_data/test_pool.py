"""Processes of a pool end with the one that started them, which is killed here."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import os, sys, time
from mmlska.data import checking

def tell(number):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == '__main__':
    checking.CHUNK = 1
    list(checking.parallel(tell, range(2), 2))
"""


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_no_process_of_a_pool_stays_behind(tmp_path):
    script = tmp_path / 'check.py'
    script.write_text(CODE)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
