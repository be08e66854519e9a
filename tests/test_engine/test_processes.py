"""Who ends with whom. Processes are started here, for they are what is tested."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmlska.engine.processes import guard_workers

pytestmark = pytest.mark.skipif(
    not hasattr(signal, 'sigtimedwait'), reason='needs sigtimedwait, which only Linux has'
)
SLOWEST = 20.0


class ProcessIds(Dataset):
    """Which process has read a sample."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_for(condition) -> bool:
    end = time.monotonic() + SLOWEST
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_goes_on_when_the_whole_job_gets_a_signal(number):
    loader = DataLoader(ProcessIds(), batch_size=1, num_workers=1, prefetch_factor=1)
    guard_workers(loader)
    batches = iter(loader)
    worker = int(next(batches))
    # Sent by another process, as a shell, torchrun or Slurm do.
    subprocess.run(['kill', f'-{number.value}', str(worker)], check=True)
    assert [int(batch) for batch in batches] == [worker] * 7


def test_ctrl_c_ends_no_worker_where_signals_cannot_be_waited_for(monkeypatch):
    monkeypatch.delattr(signal, 'sigtimedwait')
    loader = DataLoader(ProcessIds(), batch_size=1, num_workers=1, prefetch_factor=1)
    guard_workers(loader)
    batches = iter(loader)
    worker = int(next(batches))
    os.kill(worker, signal.SIGINT)
    assert [int(batch) for batch in batches] == [worker] * 7


def test_its_own_process_ends_a_worker():
    loader = DataLoader(ProcessIds(), batch_size=1, num_workers=1)
    guard_workers(loader)
    batches = iter(loader)
    worker = int(next(batches))
    os.kill(worker, signal.SIGTERM)
    assert wait_for(lambda: not alive(worker))


def test_a_loader_is_guarded_once_and_keeps_its_own_start():
    seen = torch.zeros(1).share_memory_()

    def count(worker_id: int) -> None:
        seen.add_(worker_id + 1)

    loader = DataLoader(ProcessIds(), batch_size=4, num_workers=1, worker_init_fn=count)
    guard_workers(loader)
    guard_workers(loader)
    list(loader)
    assert seen.item() == 1


ENDLESS = """
import os, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from mmlska.engine.processes import guard_workers

class Large(Dataset):
    def __len__(self):
        return 10**6
    def __getitem__(self, index):
        return os.getpid(), torch.zeros(10**6)

loader = DataLoader(Large(), batch_size=1, num_workers=2)
guard_workers(loader)
batches = iter(loader)
print(*{int(next(batches)[0]) for _ in range(2)}, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_was_killed():
    training = subprocess.Popen([sys.executable, '-c', ENDLESS], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in training.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    training.kill()
    training.wait()
    assert wait_for(lambda: not any(map(alive, workers)))


RANK = """
import signal, sys, time
from mmlska.engine.processes import follow_launcher

if sys.argv[1] == 'deaf':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
follow_launcher(grace=1.0)
follow_launcher(grace=1.0)
print('ready', flush=True)
time.sleep(600)
"""
AGENT = """
import subprocess, sys
rank = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
rank.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'by_torchrun'), [('hearing', True), ('deaf', True), ('hearing', False)]
)
def test_a_process_of_torchrun_ends_with_its_agent_and_no_other_does(kind, by_torchrun):
    environment = {**os.environ, 'TORCHELASTIC_RUN_ID': 'none'}
    if not by_torchrun:
        del environment['TORCHELASTIC_RUN_ID']
    agent = subprocess.Popen(
        [sys.executable, '-c', AGENT, RANK, kind],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    rank = int(agent.stdout.readline())
    agent.kill()
    agent.wait()
    if by_torchrun:
        assert wait_for(lambda: not alive(rank))
    else:
        time.sleep(3)
        assert alive(rank)
        os.kill(rank, signal.SIGKILL)
