"""Twenty ways to end a training, and what is left: ``make test-reliability``.

Each case starts a training in processes of its own, ends it, looks at what is left on the disk and
among the processes, and lets a second run go on. Its weights must be those of a run that nobody has
ended. The cases are drawn with a fixed seed; only the machine decides where exactly they meet.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from script_runs import free_port

from mmlska.engine.saved_checkpoints import PARTIAL, fault

TRAINING = Path(__file__).resolve().parent / 'training.py'
ITERATIONS = 24
WORKERS = 'num_workers=2'
SLOWEST = 120.0
# After the end of what has started them, processes look once a second whether it is there.
SECONDS_TO_END = 20.0
# A rank that waits for one that is gone is killed after torchrun's 30 seconds.
SECONDS_OF_RANKS = 45.0


class Training:
    """A training in a process group of its own."""

    def __init__(self, work_dir: Path, *arguments: str, ranks: int = 1, prefix: str = '') -> None:
        launcher = ['-m', 'torch.distributed.run', '--nproc_per_node', str(ranks)]
        launcher += ['--master_port', free_port()]
        command = [sys.executable, '-W', 'ignore', *(launcher if ranks > 1 else [])]
        command += [str(TRAINING), str(work_dir), *arguments]
        self.work_dir = work_dir
        self.log = work_dir.parent / f'{work_dir.name}.log'
        self.started = self.log.read_text().count('\n') if self.log.exists() else 0
        self.output = self.log.open('a')
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'}
        if prefix:
            command = ['bash', '-c', f'{prefix}; exec "$@"', 'bash', *command]
        self.process = subprocess.Popen(
            command,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def lines(self) -> list[str]:
        return self.log.read_text(errors='replace').splitlines()[self.started :]

    def wait_for_iteration(self, number: int) -> None:
        """Wait until an iteration, counted from 0, has begun."""
        self.wait_until(lambda: f'iteration {number}' in self.lines())

    def wait_until(self, condition) -> None:
        end = time.monotonic() + SLOWEST
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.lines()[-30:]
            time.sleep(0.005)

    def below(self) -> list[int]:
        """Processes that this one has started, and those that these have."""
        return descendants(self.process.pid)

    def end(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(SLOWEST)


def descendants(process: int) -> list[int]:
    children = Path(f'/proc/{process}/task/{process}/children')
    try:
        own = [int(word) for word in children.read_text().split()]
    except OSError:
        return []
    return own + [other for child in own for other in descendants(child)]


def alive(process: int) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def check_all_end(processes: list[int], seconds: float = SECONDS_TO_END) -> None:
    assert processes, 'nothing was started'
    end = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, processes))


def check_files(work_dir: Path, at_least: int) -> None:
    """What bears the name of a checkpoint is whole, and enough of them are there."""
    saved = sorted(work_dir.glob('*.pth'))
    assert len(saved) >= at_least
    assert {path.name: fault(path) for path in saved} == {path.name: '' for path in saved}


def final(work_dir: Path) -> torch.Tensor:
    weights = torch.load(work_dir / 'final.pth').values()
    return torch.cat([value.flatten().double() for value in weights])


def go_on(work_dir: Path, whole: torch.Tensor, *arguments: str, ranks: int = 1) -> None:
    """Let a second run finish, and compare it with one that was not ended."""
    training = Training(work_dir, *arguments, ranks=ranks)
    assert training.end() == 0, training.lines()[-30:]
    assert f'iteration {ITERATIONS // ranks - 1}' in training.lines()
    assert (final(work_dir) - whole).abs().max() <= 1e-6


@pytest.fixture(scope='session')
def wholes(tmp_path_factory):
    """Weights of runs that nobody ends, by arguments and number of ranks."""
    done = {}

    def train(*arguments: str, ranks: int = 1) -> torch.Tensor:
        if (arguments, ranks) not in done:
            work_dir = tmp_path_factory.mktemp('whole') / 'run'
            training = Training(work_dir, *arguments, ranks=ranks)
            assert training.end() == 0, training.lines()[-30:]
            done[arguments, ranks] = final(work_dir)
        return done[arguments, ranks]

    return train


@pytest.mark.parametrize('seed', range(6))
def test_killed_at_a_random_moment(seed, wholes, tmp_path):
    draw = random.Random(seed)
    loop = ('epochs', 'iterations')[seed % 2]
    training = Training(tmp_path / 'run', loop)
    training.wait_for_iteration(draw.randrange(ITERATIONS - 2))
    time.sleep(draw.uniform(0, 0.3))
    training.process.kill()
    training.end()
    check_files(tmp_path / 'run', 0)
    go_on(tmp_path / 'run', wholes(loop), loop)


@pytest.mark.parametrize('seed', range(4))
def test_killed_during_a_save_with_one_file_kept(seed, wholes, tmp_path):
    """The first save is complete; the kill meets one of the next."""
    loop = ('epochs', 'iterations')[seed % 2]
    training = Training(tmp_path / 'run', loop)
    training.wait_for_iteration((6, 12, 8, 16)[seed])
    training.wait_until(lambda: list((tmp_path / 'run').glob(f'.*{PARTIAL}')))
    time.sleep(random.Random(seed).uniform(0, 0.2))
    training.process.kill()
    training.end()
    check_files(tmp_path / 'run', 1)
    go_on(tmp_path / 'run', wholes(loop), loop)
    assert not list((tmp_path / 'run').glob(f'.*{PARTIAL}'))


@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_ended_by_a_signal_to_the_whole_group(number, status, wholes, tmp_path):
    """As a shell or Slurm send it: the workers of the loader get it too."""
    training = Training(tmp_path / 'run', 'epochs', WORKERS)
    training.wait_for_iteration(8)
    below = training.below()
    os.killpg(training.process.pid, number)
    assert training.end() == status
    check_all_end(below)
    assert [path.name.startswith('epoch_1_iter_') for path in tmp_path.glob('run/*.pth')] == [True]
    go_on(tmp_path / 'run', wholes('epochs', WORKERS), 'epochs', WORKERS)


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_killed_with_workers(loop, wholes, tmp_path):
    training = Training(tmp_path / 'run', loop, WORKERS)
    training.wait_for_iteration(9)
    below = training.below()
    assert len(below) >= 2
    training.process.kill()
    training.end()
    check_all_end(below)
    check_files(tmp_path / 'run', 1)
    go_on(tmp_path / 'run', wholes(loop, WORKERS), loop, WORKERS)


def test_a_worker_was_killed(wholes, tmp_path):
    training = Training(tmp_path / 'run', 'epochs', WORKERS)
    training.wait_for_iteration(8)
    below = training.below()
    os.kill(below[0], signal.SIGKILL)
    assert training.end() == 1
    assert any('ends with an error' in log.read_text() for log in tmp_path.glob('run/*/*.log'))
    check_all_end(below)
    check_files(tmp_path / 'run', 1)
    go_on(tmp_path / 'run', wholes('epochs', WORKERS), 'epochs', WORKERS)


def test_the_agent_of_two_ranks_was_killed(wholes, tmp_path):
    training = Training(tmp_path / 'run', 'epochs', ranks=2)
    training.wait_for_iteration(4)
    below = training.below()
    assert len(below) == 2
    training.process.kill()
    training.end()
    check_all_end(below, SECONDS_OF_RANKS)
    check_files(tmp_path / 'run', 1)
    go_on(tmp_path / 'run', wholes('epochs', ranks=2), 'epochs', ranks=2)


def test_one_of_two_ranks_was_killed(wholes, tmp_path):
    training = Training(tmp_path / 'run', 'epochs', ranks=2)
    training.wait_for_iteration(4)
    below = training.below()
    os.kill(below[1], signal.SIGKILL)
    assert training.end() == 1
    check_all_end(below)
    check_files(tmp_path / 'run', 1)
    go_on(tmp_path / 'run', wholes('epochs', ranks=2), 'epochs', ranks=2)


def test_the_agent_of_two_ranks_got_a_signal(wholes, tmp_path):
    training = Training(tmp_path / 'run', 'epochs', ranks=2)
    training.wait_for_iteration(4)
    below = training.below()
    training.process.terminate()
    assert training.end() == 1, 'torchrun tells no other status'
    check_all_end(below)
    assert [path.name.startswith('epoch_1_iter_') for path in tmp_path.glob('run/*.pth')] == [True]
    go_on(tmp_path / 'run', wholes('epochs', ranks=2), 'epochs', ranks=2)


def test_no_file_may_be_large(wholes, tmp_path):
    """Every save fails; the training ends with nothing saved and nothing broken."""
    training = Training(tmp_path / 'run', 'epochs', prefix='ulimit -f 1000')
    assert training.end() == 1, 'final.pth of the script itself is too large'
    assert f'iteration {ITERATIONS - 1}' in training.lines()
    assert sum('could not be saved' in line for line in training.lines()) == 4
    assert not [path for path in tmp_path.glob('run/*') if 'epoch' in path.name]
    (tmp_path / 'run' / 'final.pth').unlink(missing_ok=True)
    go_on(tmp_path / 'run', wholes('epochs'), 'epochs')


def test_the_disk_is_filled_by_another_program(tmp_path):
    """On a small disk of its own, which goes with the process: it reports what is left."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    probe = ['unshare', '-rm', 'mount', '-t', 'tmpfs', 'none', str(disk)]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip('no small disk can be mounted here')
    program = (
        f'mount -t tmpfs -o size=5m none {disk}; '
        f'{sys.executable} -W ignore {TRAINING} {disk}/run epochs fill_at=8; '
        f'echo status $?; ls -A {disk}/run'
    )
    done = subprocess.run(
        ['unshare', '-rm', 'bash', '-c', program], capture_output=True, text=True, timeout=SLOWEST
    )
    assert 'status 0' in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count('No space left on device') == 3
    left = done.stdout.partition('status 0\n')[2].split()
    assert {name for name in left if 'epoch' in name} == {'epoch_1.pth'}
