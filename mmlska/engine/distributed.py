"""Distributed jobs on machines without a GPU.

mmengine asks for a CUDA device when it starts a process group, and hands one to
``DistributedDataParallel``. A group that exists before its runner is built is used as it is, and
the wrapper takes other arguments by config: so a job on the CPU needs no runner of its own.
"""

import os

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import print_log

# Rank, number of processes and local rank as each launcher tells them.
RANK_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
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
    missing = [name for name in RANK_VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher} is for processes that {STARTERS[launcher]} started; '
            f'{", ".join(missing)} is not set in the environment'
        )
    if get_device() == 'cpu':
        start_gloo(launcher)
        fit_config_to_cpu(cfg)


def start_gloo(launcher: str) -> None:
    """Join the gloo process group of the job, on one machine unless MASTER_ADDR says otherwise."""
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    for name, source in zip(names, RANK_VARIABLES[launcher], strict=True):
        os.environ[name] = os.environ[source]
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
    count = sum(replace_sync_bn(child) for child in children if isinstance(child, (dict, list)))
    if isinstance(settings, dict) and settings.get('type') in ('SyncBN', 'MMSyncBN'):
        settings['type'] = 'BN'
        count += 1
    return count
