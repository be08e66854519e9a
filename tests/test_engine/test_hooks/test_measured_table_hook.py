import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from script_runs import free_port
from torch import nn

from mmlska.engine import MeasuredTableHook
from mmlska.engine.hooks.measured_table_hook import find_difference, sizes_in_force
from mmlska.ops import measured, tuned

CASCADE = ('depthwise_cascade', True, 'long dilated lines', 'float32')
GELU = ('depthwise_gelu', False, '', 'bfloat16')


@pytest.mark.parametrize(
    ('tables', 'words'),
    [
        ([{CASCADE: 8}, {CASCADE: 4}], 'rank 1 of 2 .* from 8 elements on by rank 0, from 4 by'),
        ([{CASCADE: 8}, {CASCADE: 8}, {}], 'rank 2 of 3 .* from 8 .* by rank 0, from no by rank 2'),
        ([{}, {GELU: None}], 'depthwise_gelu, inference, bfloat16 from no .* from None by rank 1'),
        ([{}, {GELU: 1}, {}, {GELU: 1}], 'rank 1, 3 of 4 '),
    ],
)
def test_ranks_that_differ_from_the_first_are_named_with_a_row(tables, words):
    text = find_difference(tables)
    assert re.search(words, text) and 'MMLSKA_TUNED=FILE' in text


def test_equal_tables_in_any_order_are_no_difference():
    assert find_difference([{CASCADE: 8, GELU: None}, {GELU: None, CASCADE: 8}]) == ''


def test_what_is_compared_is_what_is_in_force(monkeypatch):
    row = measured.Row(5, '', '')
    processor = measured.cpu()
    monkeypatch.setattr(measured, 'TABLE', {measured.Key(processor, *CASCADE): row})
    own = {measured.Key(processor, *GELU): row._replace(least=None)}
    monkeypatch.setattr(measured, 'tuned_rows', lambda processor: own)
    assert sizes_in_force(torch.device('cpu')) == {CASCADE: 5, GELU: None}


def test_one_process_says_which_table_it_takes():
    hook, lines = HOOKS.build(dict(type='mmlska.MeasuredTableHook')), []
    assert isinstance(hook, MeasuredTableHook)
    logger = SimpleNamespace(info=lines.append)
    hook.before_run(SimpleNamespace(model=nn.Linear(1, 1), logger=logger))
    assert lines == ['forms of the large kernels are chosen by the shipped table']


TWO_PROCESSES = """
import torch
from types import SimpleNamespace
from mmlska.engine import MeasuredTableHook
from mmlska.engine.distributed import end_process_group_at_exit, start_gloo

start_gloo()
end_process_group_at_exit()
runner = SimpleNamespace(model=torch.nn.Linear(1, 1), logger=SimpleNamespace(info=print))
MeasuredTableHook().before_run(runner)
print('goes on')
"""


@pytest.mark.slow
@pytest.mark.parametrize('same', [True, False])
def test_two_processes_go_on_with_one_table_and_stop_with_two(same, tmp_path):
    place = measured.place_of(torch.device('cpu'))
    for name, least in (('0', 4), ('1', 8)):
        table = tuned.Table(place, '2026-11-26', {tuned.Case(*CASCADE): least})
        tuned.write(tmp_path / name, [table])
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', TWO_PROCESSES],
            env={
                **os.environ,
                'RANK': rank,
                'WORLD_SIZE': '2',
                'MASTER_PORT': port,
                'MMLSKA_TUNED': str(tmp_path / ('0' if same else rank)),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in '01'
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=120)
        assert (process.returncode == 0) == same, printed
        assert ('goes on' in printed) == same
        different = 'rank 1 of 2 would choose other forms of the large kernels than rank 0'
        assert (different in printed) == (not same), printed
