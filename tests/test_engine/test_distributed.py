import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from script_runs import free_port

from mmlska.engine import distributed
from mmlska.engine.distributed import (
    RANK_VARIABLES,
    Agreement,
    fit_config_to_cpu,
    log_uncaught_errors,
    prepare_launcher,
    tell_rank,
)


@pytest.fixture
def cfg() -> Config:
    norm = dict(type='SyncBN', requires_grad=True)
    heads = [dict(norm_cfg=norm), dict(norm_cfg=dict(type='GN', num_groups=4))]
    plugins = (dict(cfg=dict(norm_cfg=norm)),)
    model = dict(backbone=dict(norm_cfg=norm, plugins=plugins), heads=heads)
    return Config(dict(model=model, sync_bn='torch'))


@pytest.mark.parametrize('launcher', list(RANK_VARIABLES))
def test_a_process_that_the_launcher_did_not_start_is_told_so(cfg, launcher, monkeypatch):
    for name in RANK_VARIABLES[launcher]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=f'--launcher {launcher} .* is not set'):
        prepare_launcher(cfg, launcher)


def test_without_a_launcher_nothing_but_its_name_changes(cfg):
    before = cfg.to_dict()
    prepare_launcher(cfg, 'none')
    assert cfg.to_dict() == {**before, 'launcher': 'none'}


def test_on_the_cpu_sync_bn_gives_way_everywhere(cfg):
    fit_config_to_cpu(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model.heads[1].norm_cfg.type == 'GN'
    assert cfg.model.backbone.plugins[0].cfg.norm_cfg.type == 'BN'
    assert 'sync_bn' not in cfg


def test_the_replacement_is_told_in_one_line(cfg, monkeypatch):
    messages = []
    monkeypatch.setattr(distributed, 'print_log', lambda message, **_: messages.append(message))
    fit_config_to_cpu(cfg)
    assert len(messages) == 1 and 'SyncBN' in messages[0] and '3 layer settings' in messages[0]


def test_the_wrapper_gets_no_device_ids_and_keeps_its_settings(cfg):
    cfg.find_unused_parameters = True
    fit_config_to_cpu(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', static_graph=True)
    fit_config_to_cpu(cfg)
    assert cfg.model_wrapper_cfg.static_graph and cfg.model_wrapper_cfg.device_ids is None


def test_with_a_gpu_the_config_is_left_to_mmengine(cfg, monkeypatch):
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    for name in RANK_VARIABLES['pytorch']:
        monkeypatch.setenv(name, '0')
    prepare_launcher(cfg, 'pytorch')
    assert 'model_wrapper_cfg' not in cfg and cfg.model.backbone.norm_cfg.type == 'SyncBN'


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_the_rank_is_told_as_torchrun_does(launcher, monkeypatch):
    for value, name in enumerate(RANK_VARIABLES[launcher]):
        monkeypatch.setenv(name, str(value))
        monkeypatch.setenv(RANK_VARIABLES['pytorch'][value], 'restored by monkeypatch')
    tell_rank(launcher)
    assert [os.environ[name] for name in RANK_VARIABLES['pytorch']] == ['0', '1', '2']


def test_alone_everything_is_agreed():
    assert Agreement().highest(15) == 15


def uncaught(error: Exception) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


def test_an_uncaught_error_reaches_the_log_with_its_rank(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
    monkeypatch.setattr(distributed, 'get_dist_info', lambda: (3, 4))
    log = tmp_path / 'run' / 'run.log'
    monkeypatch.setattr(
        distributed.MMLogger, 'get_current_instance', lambda: SimpleNamespace(log_file=str(log))
    )
    log_uncaught_errors()
    log_uncaught_errors()
    uncaught(ValueError('no such image'))
    shown = capsys.readouterr().err
    for text in (shown, log.read_text()):
        assert text.count('rank 3 of 4 on ') == text.count('ValueError: no such image') == 1
    uncaught(KeyboardInterrupt())
    assert 'KeyboardInterrupt' not in log.read_text()


TWO_PROCESSES = """
import os, sys
import torch.distributed as dist
from mmlska.engine.distributed import Agreement, end_process_group_at_exit, start_gloo

start_gloo()
end_process_group_at_exit()
rank = dist.get_rank()
print(Agreement().highest(15 * rank), flush=True)
dist.barrier()
if sys.argv[1] == 'error':
    raise ValueError('after the work')
sys.exit(75 if sys.argv[1] == 'exit' else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(('way', 'status'), [('return', 0), ('error', 1), ('exit', 75)])
def test_processes_agree_and_leave_their_group_in_every_way(way, status, tmp_path):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', TWO_PROCESSES, way],
            env={**os.environ, 'RANK': rank, 'WORLD_SIZE': '2', 'MASTER_PORT': port},
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.STDOUT,
        )
        for rank in '01'
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == status, printed
        assert printed.startswith('15') and 'terminate called' not in printed
