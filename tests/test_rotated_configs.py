"""The configs for DOTA: their recipe, and a training with evaluation on data of their format."""

from pathlib import Path

import pytest
import torch
from generated_data import make_data
from mmengine.config import Config
from script_runs import TOOLS, logged, run_here
from short_runs import shrink
from test_configs import ROOT, every, library, read

CONFIGS = sorted((ROOT / 'configs' / 'rotated').glob('*.py'))
STOCK = {
    'oriented-rcnn-le90': 'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    'rotated-retinanet-rbox-le90': (
        'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
    ),
}
SIZES = dict(tiny=[32, 64, 160, 256], small=[64, 128, 320, 512])


def test_the_table_is_complete():
    names = {f'{d}_van-lska-{s}_fpn_8xb1-1x_dota' for d in STOCK for s in SIZES}
    assert {path.stem for path in CONFIGS} == names


@every(CONFIGS)
def test_all_but_backbone_and_optimizer_is_that_of_mmrotate(path, tmp_path):
    library('mmrotate')
    detector, backbone, *_ = path.stem.split('_')
    stock = tmp_path / 'stock.py'
    stock.write_text(f"_base_ = 'mmrotate::{STOCK[detector]}'")
    cfg, stock = (Config(c.to_dict()) for c in (read(path), Config.fromfile(stock)))
    size = backbone.removeprefix('van-lska-')
    assert cfg.model.backbone == dict(
        type='mmlska.VAN',
        arch=size,
        attention=dict(type='LSKA'),
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN'),
    )
    assert cfg.model.neck.in_channels == SIZES[size]
    adamw = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.optimizer == adamw
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 8
    cfg.model.backbone = stock.model.backbone
    cfg.model.neck.in_channels = stock.model.neck.in_channels
    cfg.optim_wrapper.optimizer = stock.optim_wrapper.optimizer
    cfg.train_dataloader.batch_size = stock.train_dataloader.batch_size
    for key, value in stock.items():
        if key != 'default_hooks':
            assert cfg[key] == value, key


@pytest.mark.slow
@every([path for path in CONFIGS if 'tiny' in path.stem])
def test_the_scripts_train_and_evaluate(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = read(path)
    make_data(cfg)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.pipeline = shrink(dataset.pipeline)
    for loader in ('train', 'val', 'test'):
        cfg[f'{loader}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.dump('mine.py')
    short = (
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=2',
        'default_hooks.logger.interval=1',
    )
    run_here(TOOLS / 'train.py', 'mine.py', '--cfg-options', *short, cwd=tmp_path)
    (record,) = [r for r in logged(Path('work_dirs/mine')) if 'loss' in r]
    assert torch.isfinite(torch.tensor(record['loss'])) and record['loss'] > 0
    tested = run_here(TOOLS / 'test.py', 'mine.py', 'work_dirs/mine/epoch_1.pth', cwd=tmp_path)
    assert 'dota/mAP' in tested.stdout + tested.stderr
