"""Training the cells: what is finished stays finished, what was interrupted goes on."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.utils import ProgressBar

from mmlska.engine.hooks.interruption_hook import EXIT_INTERRUPTED, EXIT_SAVED

from .cells import Cell, config_path
from .records import NoFiguresError, last_figures
from .spec import Spec

RESULT, FAILURE, TRAINED, SUBMITTED = 'result.json', 'failure.json', 'trained', 'submitted.json'
LOG = 'train.log'
# A line that ends a traceback, as in "ValueError: ..." or "torch.cuda.OutOfMemoryError: ...".
EXCEPTION = re.compile(r'^([\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)$', re.MULTILINE)
LONGEST_REASON = 300


@dataclass(frozen=True)
class Run:
    """A cell with a seed.

    Attributes:
        cell: The cell.
        seed: The seed.
        config: Its config.
        folder: Its work dir.
    """

    cell: Cell
    seed: int
    config: Path
    folder: Path

    def __str__(self) -> str:
        return f'{self.cell.name}, seed {self.seed}'


@dataclass(frozen=True)
class Launch:
    """How trainings are started.

    Attributes:
        script: Path of ``tools/train.py``.
        launcher: ``'none'``, ``'pytorch'`` (torchrun on this machine) or ``'slurm'`` (sbatch).
        gpus: Processes of one training.
        jobs: Trainings at once on this machine.
        slurm_args: More arguments of sbatch, in one text.
    """

    script: Path
    launcher: str = 'none'
    gpus: int = 1
    jobs: int = 1
    slurm_args: str = ''


class InterruptedRunsError(RuntimeError):
    """The trainings were interrupted; the same command goes on."""


def list_runs(spec: Spec, cells: Sequence[Cell]) -> list[Run]:
    """All runs: seed by seed, so that after the first seed every cell has a figure."""
    return [
        Run(cell, seed, config_path(spec, cell), spec.work_dir / 'runs' / cell.name / f'seed{seed}')
        for seed in spec.seeds
        for cell in cells
        if cell.text
    ]


def command(run: Run, launch: Launch) -> list[str]:
    """Command line that trains a run, or goes on with it."""
    script = [
        *(str(launch.script), str(run.config), '--work-dir', str(run.folder), '--resume'),
        *('--cfg-options', f'randomness.seed={run.seed}'),
    ]
    if launch.launcher == 'none':
        return [sys.executable, *script]
    if launch.launcher == 'pytorch':
        torchrun = [
            '-m',
            'torch.distributed.run',
            '--standalone',
            f'--nproc_per_node={launch.gpus}',
        ]
        return [sys.executable, *torchrun, *script, '--launcher', 'pytorch']
    training = ['srun', sys.executable, '-u', *script, '--launcher', 'slurm']
    trained = shlex.quote(str(run.folder / TRAINED))
    return [
        *('sbatch', '--parsable', '--requeue', '--signal=TERM@120'),
        *(f'--job-name={run.cell.name}-{run.seed}', f'--ntasks={launch.gpus}'),
        f'--output={run.folder / "slurm-%j.log"}',
        *shlex.split(launch.slurm_args),
        *('--wrap', f'{shlex.join(training)} && touch {trained}'),
    ]


def fingerprint(config: Path) -> str:
    """A hash of all settings of a config, by which a result is known to be of them."""
    settings = Config.fromfile(config).to_dict()
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(runs: Sequence[Run]) -> None:
    """Check that finished runs were trained by the settings of today.

    Raises:
        ValueError: If one was not.
    """
    marks: dict[Path, str] = {}
    for run in runs:
        result = read_json(run.folder / RESULT)
        if result is None:
            continue
        if run.config not in marks:
            marks[run.config] = fingerprint(run.config)
        if result['fingerprint'] != marks[run.config]:
            raise ValueError(
                f'{run} was trained by other settings than {run.config} has now: take another '
                f'--work-dir, or remove {run.folder} to train it again'
            )


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let no other process train into a folder at the same time.

    Raises:
        OSError: If one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / '.lock').acquire(timeout=0)
    except Timeout as error:
        raise OSError(f'{folder} is in use by another ablation: wait, or take another') from error
    with lock:
        yield


def train_all(runs: Sequence[Run], launch: Launch) -> None:
    """Train what is not finished. A run that fails leaves its reason, and the rest goes on.

    Raises:
        InterruptedRunsError: If a signal has ended a training.
    """
    waiting = [run for run in runs if read_json(run.folder / RESULT) is None]
    if launch.launcher == 'slurm':
        submit_all(waiting, launch)
        return
    if not waiting:
        return
    print(f'{len(runs) - len(waiting)} of {len(runs)} runs are finished, {len(waiting)} to train')
    progress = ProgressBar(len(waiting), file=sys.stderr)
    children = Children()
    with children.stopping(), ThreadPoolExecutor(launch.jobs) as pool:
        for _ in pool.map(lambda run: train(run, launch, children), waiting):
            progress.update()
    print(file=sys.stderr)
    if children.stopped:
        raise InterruptedRunsError('interrupted: the same command goes on where this one ended')


class Children:
    """Processes that train, and that end when this one is told to."""

    def __init__(self) -> None:
        self.stopped = False
        self.running: set[subprocess.Popen] = set()

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Hand SIGINT and SIGTERM on: each training saves and ends, and no other begins."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run a command into a log; returns its exit status."""
        with log.open('wb') as file:
            # A session of its own, so that Ctrl-C reaches it once, through this process.
            process = subprocess.Popen(
                arguments, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.running.add(process)
            try:
                if self.stopped:
                    process.send_signal(signal.SIGTERM)
                return process.wait()
            finally:
                self.running.discard(process)


def train(run: Run, launch: Launch, children: Children) -> None:
    """Train one run in a process of its own, and keep its figures or the reason why not."""
    if children.stopped:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / FAILURE).unlink(missing_ok=True)
    if not (run.folder / TRAINED).exists():
        start = time.monotonic()
        status = children.run(command(run, launch), run.folder / LOG)
        if children.stopped and status != 0:
            return
        if status in (EXIT_SAVED, EXIT_INTERRUPTED):
            children.stopped = True
            return
        if status != 0:
            fail(run, why(status, (run.folder / LOG).read_text(errors='replace', encoding='utf-8')))
            return
        write_json(run.folder / TRAINED, dict(seconds=time.monotonic() - start))
    collect(run)


def collect(run: Run) -> None:
    """Keep the figures of a finished training."""
    try:
        figures = last_figures(run.folder)
    except NoFiguresError as error:
        (run.folder / TRAINED).unlink()
        fail(run, str(error))
        return
    write_json(
        run.folder / RESULT,
        dict(fingerprint=fingerprint(run.config), seed=run.seed, figures=figures),
    )


def fail(run: Run, reason: str) -> None:
    """Keep the reason why a run has no figures."""
    write_json(run.folder / FAILURE, dict(reason=reason))


def why(status: int, log: str) -> str:
    """Why a process ended with an exit status that is not 0, by its log."""
    if status < 0:
        return f'ended by {signal.Signals(-status).name}'
    found = EXCEPTION.findall(log)
    told = re.findall(r'^train\.py: error[^:]*: (.*)$', log, re.MULTILINE)
    lines = told or found or log.strip().splitlines() or [f'exit status {status}, nothing logged']
    return lines[-1][:LONGEST_REASON]


def submit_all(runs: Sequence[Run], launch: Launch) -> None:
    """Hand runs to Slurm, and collect those that it has finished.

    Raises:
        OSError: If Slurm refuses one. The message is Slurm's.
    """
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        if (run.folder / TRAINED).exists():
            collect(run)
            continue
        job = (read_json(run.folder / SUBMITTED) or {}).get('job')
        if job and is_queued(job):
            print(f'{run}: job {job} waits or runs')
            continue
        done = subprocess.run(command(run, launch), capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f'sbatch refused {run}: {done.stderr.strip()}')
        # With several clusters, the name of one follows the number.
        job = done.stdout.strip().split(';')[0]
        write_json(run.folder / SUBMITTED, dict(job=job))
        print(f'{run}: submitted as job {job}')


def is_queued(job: str) -> bool:
    """Whether Slurm still has a job that waits or runs."""
    done = subprocess.run(['squeue', '-h', '-j', job], capture_output=True, text=True)
    return done.returncode == 0 and bool(done.stdout.strip())


def read_json(path: Path) -> dict | None:
    """Content of a file, None if there is none."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that appears only when it is whole."""
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    partial.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    os.replace(partial, path)
