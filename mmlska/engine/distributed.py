"""Distributed jobs: on machines without a GPU, and how their processes fail and end.

mmengine asks for a CUDA device when it starts a process group, and hands one to
``DistributedDataParallel``. A group that exists before its runner is built is used as it is, and
the wrapper takes other arguments by config: so a job on the CPU needs no runner of its own.
"""

import atexit
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import TracebackType

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_dist_info, is_main_process
from mmengine.logging import MMLogger, print_log

from .processes import follow_launcher

# Rank, number of processes and local rank as each launcher tells them.
RANK_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
SETTLING_SECONDS = 0.5
STARTERS = {
    'pytorch': 'torchrun (tools/dist_train.sh, tools/dist_test.sh)',
    'slurm': 'srun (tools/slurm_train.sh, tools/slurm_test.sh)',
    'mpi': 'mpirun',
}


def prepare_launcher(cfg: Config, launcher: str) -> None:
    """Set the launcher, and make the job fit for the CPU where there is nothing else.

    Raises:
        ValueError: If the process was not started by that launcher.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    tell_rank(launcher)
    follow_launcher()
    log_uncaught_errors()
    end_process_group_at_exit()
    if get_device() == 'cpu':
        start_gloo()
        fit_config_to_cpu(cfg)


def tell_rank(launcher: str) -> None:
    """Name rank, number of processes and local rank as torchrun does, whoever has started them.

    Raises:
        ValueError: If the process was not started by that launcher.
    """
    if launcher == 'none':
        return
    missing = [name for name in RANK_VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher} is for processes that {STARTERS[launcher]} started; '
            f'{", ".join(missing)} is not set in the environment'
        )
    for name, source in zip(RANK_VARIABLES['pytorch'], RANK_VARIABLES[launcher], strict=True):
        os.environ[name] = os.environ[source]


def start_gloo() -> None:
    """Join the gloo process group of the job, on one machine unless MASTER_ADDR says otherwise."""
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    if not dist.is_initialized():
        dist.init_process_group('gloo')


def fit_config_to_cpu(cfg: Config) -> None:
    """Wrap the model without device ids, and replace SyncBN, which needs GPUs in a group."""
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    cfg.pop('sync_bn', None)
    replaced = replace_sync_bn(cfg.model)
    if replaced and is_main_process():
        print_log(
            f'no GPU: SyncBN of {replaced} layer settings is replaced by BN, each process '
            'normalises by its own part of the batch',
            logger='current',
        )


def replace_sync_bn(settings: dict | list | tuple) -> int:
    """Turn each ``type='SyncBN'`` below into ``type='BN'``; returns how many there were."""
    children = settings.values() if isinstance(settings, dict) else settings
    nested = (child for child in children if isinstance(child, (dict, list, tuple)))
    count = sum(map(replace_sync_bn, nested))
    if isinstance(settings, dict) and settings.get('type') in ('SyncBN', 'MMSyncBN'):
        settings['type'] = 'BN'
        count += 1
    return count


def end_process_group_at_exit() -> None:
    """End the process group in every way out: return, error or signal that Python handles.

    The threads of a group that lives longer than the interpreter end the process with a crash.
    """
    atexit.unregister(end_process_group)
    atexit.register(end_process_group)


def end_process_group() -> None:
    """Leave the process group of the job, if there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_backend() == 'gloo':
        # Its threads let go of finished work a moment later, and need the interpreter for that.
        time.sleep(SETTLING_SECONDS)
    dist.destroy_process_group()


class Agreement:
    """A number that all processes of a job know alike, wherever it came from.

    It travels over the CPU: asked after each iteration, it would otherwise hold up the GPU. All
    processes make it, and ask, at the same points of their work.
    """

    def __init__(self) -> None:
        self.alone = get_dist_info()[1] == 1
        self.group = None
        if not self.alone and dist.get_backend() != 'gloo':
            self.group = dist.new_group(backend='gloo')

    def highest(self, value: int) -> int:
        """The highest of the values that the processes give."""
        if self.alone:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.group)
        return int(shared)


def log_uncaught_errors() -> None:
    """Let an error that ends this process reach the log, with the rank of the process.

    mmengine's log is written by the first process alone, and torchrun shows the errors of all
    without their ranks.
    """
    if not isinstance(sys.excepthook, partial):
        sys.excepthook = partial(_show_and_log, sys.excepthook)


def _show_and_log(
    show: Callable,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    rank, processes = get_dist_info()
    heading = f'rank {rank} of {processes} on {socket.gethostname()} ends with an error:'
    if processes > 1:
        print(heading, file=sys.stderr)
    show(kind, error, trace)
    log_file = MMLogger.get_current_instance().log_file
    if log_file is None or isinstance(error, KeyboardInterrupt):
        return
    try:
        os.makedirs(os.path.dirname(log_file), exist_ok=True)
        with open(log_file, 'a', encoding='utf-8') as log:
            log.write(f'{heading}\n{"".join(traceback.format_exception(kind, error, trace))}')
    except OSError as problem:
        print(f'{log_file} could not be written: {problem}', file=sys.stderr)
