"""Sharded training of two processes resumes exactly, and leaves plain weights beside its parts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import STRATEGIES

from mmlska.checkpoint import read_checkpoint
from mmlska.models import VAN

SCRIPT = Path(__file__).parents[1] / 'sharded_training.py'
CONFIGS = Path(__file__).parents[2] / 'configs'
sharded = pytest.importorskip('mmlska.engine.sharded_strategy')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sharded')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [*command, SCRIPT, folder],
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def weights_of(folder):
    return torch.load(folder / 'weights.pth', weights_only=True)['state_dict']


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_cut_off(folder):
    whole, resumed = (weights_of(folder / name / 'iter_4.pth') for name in ('whole', 'cut'))
    cut = weights_of(folder / 'cut' / 'iter_2.pth')
    assert whole.keys() == resumed.keys() == cut.keys()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-6)
    assert any(not torch.equal(cut[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_the_plain_weights_are_those_of_the_whole_model(folder):
    saved = folder / 'whole' / 'iter_4.pth'
    assert sorted(path.name for path in saved.iterdir()) == [
        'rank0.pth',
        'rank1.pth',
        'weights.pth',
    ]
    from_file = read_checkpoint(saved / 'weights.pth')['state_dict']
    attention = dict(type='LSKA', kernel_size=7)
    norm = dict(type='GN', num_groups=2)
    arch = dict(embed_dims=[4, 8], depths=[1, 1], ffn_ratios=[2, 2])
    model = VAN(arch, attention, norm_cfg=norm, out_indices=(1,))
    model.load_state_dict({key.removeprefix('backbone.'): from_file[key] for key in from_file})
    assert model.has_loaded_weights


def test_the_base_goes_beside_a_recipe(tmp_path):
    base = CONFIGS / '_base_' / 'sharded.py'
    recipe = CONFIGS / 'van_lska' / 'retinanet_van-lska-tiny_fpn_1x_coco.py'
    (tmp_path / 'mine.py').write_text(f'_base_ = [{str(recipe)!r}, {str(base)!r}]')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.runner_type == 'FlexibleRunner'
    assert isinstance(STRATEGIES.build(cfg.strategy), sharded.ShardedStrategy)


def test_its_kind_of_saving_cannot_be_chosen():
    with pytest.raises(TypeError, match='ShardedStrategy takes no state_dict_cfg'):
        STRATEGIES.build(dict(type='mmlska.ShardedStrategy', state_dict_cfg='full'))


def test_without_a_gpu_it_is_built_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    wrapper = sharded.ShardedStrategy(model_wrapper=dict(limit_all_gathers=True)).model_wrapper
    assert wrapper['device_id'] == torch.device('cpu')
    assert wrapper['limit_all_gathers'] and wrapper['use_orig_params']
