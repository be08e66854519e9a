"""The tool, from its command line to its reports, on models of a minute."""

import json

import pytest
from script_runs import TOOLS, run_here

pytest.importorskip('mmseg')


@pytest.mark.slow
def test_an_ablation_of_a_base_and_a_cell(scenes):
    user = scenes.parents[1]
    arguments = (
        *(TOOLS / 'ablate.py', 'fpn_van-lska-nano_demo_digits-128x128', '--jobs', '2'),
        *('--add', 'ECA', '--where', 'neck', '--seeds', '1', '--work-dir', 'mine'),
        *('--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=1'),
        'default_hooks.checkpoint.interval=2',
    )
    done = run_here(*arguments, cwd=user)
    assert '| ECA ' in done.stdout
    base, eca = json.loads((user / 'mine' / 'report.json').read_text())
    assert set(base['figures']) == set(eca['figures']) == {'aAcc', 'mIoU', 'mAcc'}
    assert eca['cost']['step_bytes'] > base['cost']['params']
    page = (user / 'mine' / 'report.html').read_text()
    # Curves, and best and worst of two cells.
    assert page.count('data:image/png') == 1 + 4
    # Once more: nothing is trained again.
    logs = sorted(user.glob('mine/runs/*/seed0/*/vis_data/scalars.json'))
    run_here(*arguments, cwd=user)
    assert sorted(user.glob('mine/runs/*/seed0/*/vis_data/scalars.json')) == logs
