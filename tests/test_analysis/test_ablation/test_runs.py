"""Trainings by a script that takes no time: what is kept, what is tried again, what is told."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmlska.analysis.ablation import runs as runs_module
from mmlska.analysis.ablation.cells import Cell
from mmlska.analysis.ablation.records import (
    NoFiguresError,
    choose_metrics,
    curve,
    evaluated,
    last_figures,
)
from mmlska.analysis.ablation.runs import (
    InterruptedRunsError,
    Launch,
    Run,
    check_unchanged,
    command,
    only_one,
    read_json,
    train_all,
    why,
)

# Trains as the config says: fails, waits for a signal the first time, or logs figures.
SCRIPT = """
import json, pathlib, signal, sys, time
config, _, folder = sys.argv[1:4]
seed = int(sys.argv[-1].partition('=')[2])
assert '--resume' in sys.argv
kind = pathlib.Path(config).read_text().partition("'")[2].partition("'")[0]
folder = pathlib.Path(folder)
with (folder / 'starts').open('a') as file:
    file.write('x')
if kind == 'fails':
    raise ValueError(f'kernel_size of seed {seed}')
if kind == 'waits' and (folder / 'starts').read_text() == 'x':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
log = folder / '20260101_000000' / 'vis_data'
log.mkdir(parents=True)
with (log / 'scalars.json').open('w') as file:
    for step in (1, 2):
        print(json.dumps(dict(loss=1 / step, step=step)), file=file)
    if kind != 'silent':
        print(json.dumps(dict(mIoU=50 + seed, aAcc=90.0, time=0.1, step=2)), file=file)
"""


@pytest.fixture
def make(tmp_path):
    """Runs of one kind with some seeds, and how to launch them."""
    script = tmp_path / 'train.py'
    script.write_text(SCRIPT)

    def runs(kind='trains', seeds=(0,)):
        config = tmp_path / f'{kind}.py'
        config.write_text(f"kind = '{kind}'\n")
        cell = Cell(kind, kind, config.read_text())
        return [Run(cell, seed, config, tmp_path / 'runs' / kind / f'{seed}') for seed in seeds]

    return runs, Launch(script)


def starts(run):
    return len((run.folder / 'starts').read_text())


def test_finished_runs_are_never_computed_again(make):
    runs, launch = make
    trained = runs(seeds=(0, 3))
    for _ in range(2):
        train_all(trained, launch)
    assert [starts(run) for run in trained] == [1, 1]
    results = [read_json(run.folder / 'result.json') for run in trained]
    assert [result['figures'] for result in results] == [
        dict(mIoU=50, aAcc=90.0),
        dict(mIoU=53, aAcc=90.0),
    ]


def test_a_training_that_ended_before_its_figures_were_kept_is_not_repeated(make):
    runs, launch = make
    (run,) = runs()
    train_all([run], launch)
    (run.folder / 'result.json').unlink()
    train_all([run], launch)
    assert starts(run) == 1
    assert read_json(run.folder / 'result.json')['figures']['mIoU'] == 50


def test_a_failing_cell_has_its_reason_and_the_rest_goes_on(make):
    runs, launch = make
    failing, good = runs('fails', (0, 1)), runs()
    train_all([*failing, *good], launch)
    reasons = [read_json(run.folder / 'failure.json')['reason'] for run in failing]
    assert reasons == [f'ValueError: kernel_size of seed {seed}' for seed in (0, 1)]
    assert (good[0].folder / 'result.json').exists()
    # Once more, for its reason may be gone.
    train_all(failing, launch)
    assert starts(failing[0]) == 2


def test_a_training_without_figures_has_failed(make):
    runs, launch = make
    (run,) = runs('silent')
    train_all([run], launch)
    assert 'no figures' in read_json(run.folder / 'failure.json')['reason']


def test_interrupted_runs_go_on(make):
    runs, launch = make
    waiting, after = runs('waits'), runs()

    def interrupt():
        while not (waiting[0].folder / 'starts').exists():
            time.sleep(0.02)
        # The handler of the script has to be there too.
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=interrupt).start()
    with pytest.raises(InterruptedRunsError, match='the same command goes on'):
        train_all([*waiting, *after], launch)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (waiting[0].folder / 'failure.json').exists()
    assert not after[0].folder.exists()
    train_all([*waiting, *after], launch)
    assert starts(waiting[0]) == 2
    assert all((run.folder / 'result.json').exists() for run in (*waiting, *after))


def test_results_of_other_settings_are_not_taken_for_these(make):
    runs, launch = make
    (run,) = runs()
    train_all([run], launch)
    check_unchanged([run])
    run.config.write_text("kind = 'trains'\nlr = 2\n")
    with pytest.raises(ValueError, match='other settings'):
        check_unchanged([run])


@pytest.mark.slow
def test_one_ablation_in_a_folder(tmp_path):
    code = (
        'import sys, pathlib\nfrom mmlska.analysis.ablation.runs import only_one\n'
        'with only_one(pathlib.Path(sys.argv[1])): pass'
    )
    with only_one(tmp_path):
        done = subprocess.run(
            [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True
        )
    assert 'in use by another ablation' in done.stderr


def test_the_command_of_torchrun(make):
    runs, launch = make
    line = command(runs()[0], Launch(launch.script, 'pytorch', gpus=4))
    assert '--nproc_per_node=4' in line
    assert line[-2:] == ['--launcher', 'pytorch']


def executable(path: Path, text: str) -> None:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_slurm_gets_each_run_once_and_its_results_are_collected(make, tmp_path, monkeypatch):
    runs, launch = make
    folder = tmp_path / 'bin'
    folder.mkdir()
    executable(folder / 'sbatch', f'echo "$@" >> {tmp_path}/jobs; echo "17;cluster"')
    executable(folder / 'squeue', f'cat {tmp_path}/queue 2> /dev/null')
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    (run,) = runs()
    slurm = Launch(launch.script, 'slurm', gpus=8, slurm_args='-p gpu --gres=gpu:8')
    (tmp_path / 'queue').write_text('17 RUNNING')
    for _ in range(2):
        train_all([run], slurm)
    (job,) = (tmp_path / 'jobs').read_text().splitlines()
    assert '-p gpu --gres=gpu:8' in job
    assert '--ntasks=8' in job
    assert f'touch {run.folder}/trained' in job
    # The job ends: what it would have run is run here.
    (tmp_path / 'queue').unlink()
    subprocess.run(command(run, launch), check=True)
    (run.folder / 'trained').touch()
    train_all([run], slurm)
    assert read_json(run.folder / 'result.json')['figures']['mIoU'] == 50


def test_a_lost_job_is_submitted_again(make, tmp_path, monkeypatch):
    runs, launch = make
    done = subprocess.CompletedProcess([], 0, stdout='', stderr='')
    calls = []

    def run_command(arguments, **_):
        calls.append(arguments[0])
        return done

    monkeypatch.setattr(runs_module.subprocess, 'run', run_command)
    (run,) = runs()
    done.stdout = '5\n'
    train_all([run], Launch(launch.script, 'slurm'))
    done.stdout = ''
    train_all([run], Launch(launch.script, 'slurm'))
    assert calls == ['sbatch', 'squeue', 'sbatch']


@pytest.mark.parametrize(
    ('status', 'log', 'reason'),
    [
        (-9, '', 'ended by SIGKILL'),
        (1, 'train.py: error: no config file', 'no config file'),
        (1, 'a\ntorch.OutOfMemoryError: CUDA out of memory\n\n', 'torch.OutOfMemoryError: CUDA'),
        (3, 'last words\n', 'last words'),
        (3, '', 'exit status 3'),
    ],
)
def test_reasons(status, log, reason):
    assert why(status, log).startswith(reason)


def write_log(folder: Path, stamp: str, records: list[dict]) -> None:
    path = folder / stamp / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def test_of_a_step_that_was_repeated_the_later_record_counts(tmp_path):
    write_log(tmp_path, '20260101_1', [dict(loss=3, step=1), dict(loss=9, step=2)])
    write_log(
        tmp_path,
        '20260101_2',
        [dict(loss=2, step=2), dict(mIoU=5.0, time=1, step=2), dict(data_time=1, step=3)],
    )
    assert curve(tmp_path, 'loss') == [(1, 3), (2, 2)]
    assert last_figures(tmp_path) == dict(mIoU=5.0)


def test_a_detector_that_finds_nothing_at_the_end_has_no_result(tmp_path):
    found = [dict(mIoU=5.0, time=1, step=0), dict(time=1, data_time=1, step=2)]
    write_log(tmp_path, '20260101_1', found)
    assert evaluated(tmp_path, 'mIoU') == [5.0, 0.0]
    with pytest.raises(NoFiguresError, match='finds nothing'):
        last_figures(tmp_path)


def test_an_undefined_figure_is_no_result(tmp_path):
    write_log(tmp_path, '20260101_1', [dict(mIoU=float('nan'), step=2)])
    with pytest.raises(NoFiguresError, match='mIoU=nan'):
        last_figures(tmp_path)


def test_the_figures_that_are_compared():
    found = [{'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.2}, {'coco/segm_mAP': 0.1}]
    assert choose_metrics(found, ()) == ['coco/bbox_mAP', 'coco/segm_mAP']
    assert choose_metrics(found, ['coco/bbox_mAP_50']) == ['coco/bbox_mAP_50']
    assert choose_metrics([dict(mine=1.0)], ()) == ['mine']
    with pytest.raises(ValueError, match='bbox_mAP_50'):
        choose_metrics(found, ['mIoU'])
