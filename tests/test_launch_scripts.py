"""What the launch scripts make of the exit status of a training."""

import os
from pathlib import Path

import pytest
from script_runs import TOOLS, run

COMMAND = [TOOLS / 'slurm_train.sh', 'part', 'job', 'config', 'work_dir', '--resume', 'epoch_1.pth']


@pytest.fixture
def slurm(tmp_path):
    """Environment with a srun that ends as told, and a scontrol; both keep their arguments."""
    for name, status in (('srun', '$STATUS'), ('scontrol', '0')):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\nexit {status}\n')
        script.chmod(0o755)
    return dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', CALLS=str(tmp_path / 'calls'))


def calls(folder: Path) -> list[str]:
    return (folder / 'calls').read_text().splitlines()


def test_a_job_that_was_saved_by_a_signal_is_queued_again(slurm, tmp_path):
    done = run(*COMMAND, cwd=tmp_path, expect=75, STATUS='75', SLURM_JOB_ID='17', **slurm)
    assert calls(tmp_path)[1:] == ['scontrol requeue 17']
    assert 'job 17 is queued again' in done.stderr


@pytest.mark.parametrize('status', [0, 1, 74, 130])
def test_no_other_job_is(slurm, tmp_path, status):
    run(*COMMAND, cwd=tmp_path, expect=status, STATUS=str(status), SLURM_JOB_ID='17', **slurm)
    assert len(calls(tmp_path)) == 1


def test_outside_a_batch_job_nothing_can_be_queued(slurm, tmp_path):
    run(*COMMAND, cwd=tmp_path, expect=75, STATUS='75', **slurm)
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize(('restarts', 'added'), [('0', ''), ('2', ' --resume')])
def test_a_job_that_was_queued_again_goes_on_from_the_newest(slurm, tmp_path, restarts, added):
    run(*COMMAND, cwd=tmp_path, STATUS='0', SLURM_RESTART_COUNT=restarts, **slurm)
    assert calls(tmp_path)[0].endswith(f' --launcher=slurm --resume epoch_1.pth{added}')
