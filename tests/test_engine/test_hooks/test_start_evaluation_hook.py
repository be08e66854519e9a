"""Figures of a model before its first iteration, and a training that does not feel them."""

import json

import pytest
import torch
from toy_training import stop_workers, toy_runner, weights

HOOK = dict(type='mmlska.StartEvaluationHook')


def steps_of_evaluations(folder):
    """Steps at which a figure was logged, by one run after the other.

    Runs that start in the same second log into the same folder.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    records = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [record['step'] for record in records if 'acc' in record]


def trained(folder, hooks, **options):
    runner = toy_runner(folder, hooks=hooks, **options)
    runner.train()
    stop_workers(runner)
    return runner


def test_the_start_is_evaluated_and_changes_nothing(tmp_path):
    with_hook, without = (
        trained(tmp_path / str(len(hooks)), hooks, length=2) for hooks in ([HOOK], [])
    )
    assert torch.equal(weights(with_hook), weights(without))
    assert steps_of_evaluations(tmp_path / '1') == [0, 1, 2]
    assert steps_of_evaluations(tmp_path / '0') == [1, 2]


def test_a_resumed_run_is_not_evaluated_again(tmp_path):
    trained(tmp_path, [HOOK], length=1)
    trained(tmp_path, [HOOK], length=2, resume=True)
    assert steps_of_evaluations(tmp_path) == [0, 1, 2]


def test_without_an_evaluation_the_reason_is_told(tmp_path):
    runner = toy_runner(tmp_path, hooks=[HOOK])
    runner._val_loop = runner._val_dataloader = runner._val_evaluator = None
    with pytest.raises(ValueError, match='set val_dataloader, val_cfg and val_evaluator'):
        runner.train()
