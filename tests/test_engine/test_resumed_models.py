"""A detector and a segmentor that were interrupted end as those that were not."""

import os
import signal
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from toy_training import Call

from mmlska.engine.config import load_config
from mmlska.engine.launch import build_runner

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
LENGTH = 4


def train(config: str, work_dir: Path, *hooks: Hook) -> torch.nn.Module:
    """Train with all that draws random numbers: drop path, flips, sampled regions."""
    cfg = load_config(
        CONFIGS / f'{config}.py',
        {
            'train_cfg.max_iters': LENGTH,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 2,
            'model.backbone.drop_path_rate': 0.5,
            'work_dir': str(work_dir),
            'resume': work_dir.exists(),
            'experiment_name': work_dir.name + str(work_dir.exists()),
        },
    )
    flip = dict(type='RandomFlip', prob=0.5)
    cfg.train_dataloader.dataset.pipeline.insert(-1, flip)
    runner = build_runner(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner.model


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'library'), [('small_retinanet', 'mmdet'), ('small_fpn', 'mmseg')]
)
def test_the_resumed_run_equals_the_uninterrupted_one(
    config, library, scenes, tmp_path, monkeypatch
):
    pytest.importorskip(library)
    monkeypatch.chdir(scenes.parent.parent)
    whole = train(config, tmp_path / 'whole')
    cut = Call(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(config, tmp_path / 'cut', cut)
    resumed = train(config, tmp_path / 'cut')
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)
