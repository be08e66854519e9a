"""Processes that end with the one that started them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

from torch.utils.data import DataLoader

# What a shell, torchrun or Slurm sends to all processes of a job, workers of data loaders included.
JOB_SIGNALS = tuple(
    getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)
)
POLL_SECONDS = 1.0


def guard_workers(loader: DataLoader) -> None:
    """Let the workers of a loader outlive the signals of a job, and never their own process.

    A worker that dies of a signal takes the training with it before a checkpoint is saved. One
    whose process was killed waits forever for a reader of its batches.

    Args:
        loader: A loader whose workers have not been started. It may be given again.
    """
    if not _is_guarded(loader):
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _is_guarded(loader: DataLoader) -> bool:
    start = loader.worker_init_fn
    return isinstance(start, partial) and start.func is _start_worker


def _start_worker(initialize: Callable[[int], None] | None, worker_id: int) -> None:
    parent = os.getppid()
    if hasattr(signal, 'sigtimedwait'):
        # Blocked here, they are taken by the thread, which sees who has sent them.
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    else:
        # Of Ctrl-C, the one that terminals there send to all processes, no worker is ended.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_worker, args=(parent,), daemon=True).start()
    if initialize is not None:
        initialize(worker_id)


def _watch_worker(parent: int) -> None:
    """End the worker when its process is gone, or asks for it."""
    while os.getppid() == parent:
        if not hasattr(signal, 'sigtimedwait'):
            time.sleep(POLL_SECONDS)
            continue
        received = signal.sigtimedwait(JOB_SIGNALS, POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            os._exit(0)
    # At exit, Python would wait for batches to be read.
    os._exit(1)


def follow_launcher(grace: float = 30.0) -> None:
    """Let this process of torchrun end with the agent that started it.

    Once the agent is gone, the process gets SIGTERM, on which a training saves and ends, and after
    some seconds SIGKILL: it may wait for a process that is gone too. Processes that torchrun has
    not started are left alone: a shell may end before what it has started.

    Args:
        grace: Seconds between the two signals; torchrun itself leaves 30.
    """
    watched = any(thread.name == follow_launcher.__name__ for thread in threading.enumerate())
    if 'TORCHELASTIC_RUN_ID' not in os.environ or watched:
        return
    threading.Thread(
        target=_watch_launcher,
        args=(os.getppid(), grace),
        name=follow_launcher.__name__,
        daemon=True,
    ).start()


def _watch_launcher(agent: int, grace: float) -> None:
    while os.getppid() == agent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))
