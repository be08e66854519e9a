"""Trains a small VAN in parts, by torchrun: whole, cut off, and from there on, in one folder each.

Arguments: the folder that the three are made in.
"""

import sys
from pathlib import Path

import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner

import mmlska.models  # noqa: F401
from mmlska.engine.distributed import end_process_group_at_exit, start_gloo
from mmlska.models import VAN

ARCH = dict(embed_dims=[4, 8], depths=[1, 1], ffn_ratios=[2, 2])
SAMPLES, CUT, END = 8, 2, 4


class Pictures(BaseDataset):
    """Random images, each time the same."""

    def load_data_list(self) -> list[dict]:
        images = torch.rand(SAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return [dict(inputs=image) for image in images]

    def prepare_data(self, idx: int) -> dict:
        return dict(inputs=self.get_data_info(idx)['inputs'])


class Model(BaseModel):
    """A backbone whose maps become small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = dict(type='GN', num_groups=2)
        attention = dict(type='LSKA', kernel_size=7)
        self.backbone = VAN(ARCH, attention, norm_cfg=norm, out_indices=(1,))

    def forward(self, inputs: list[torch.Tensor], mode: str = 'tensor') -> dict | torch.Tensor:
        maps = self.backbone(torch.stack(inputs))[0]
        return dict(loss=maps.square().mean()) if mode == 'loss' else maps


def train(folder: Path, iterations: int, resume: bool = False) -> None:
    """Train, saving after each second iteration."""
    checkpoints = dict(type='mmlska.SafeCheckpointHook', interval=CUT, by_epoch=False)
    FlexibleRunner(
        model=Model(),
        work_dir=str(folder),
        experiment_name=f'{folder.name}-{iterations}',
        strategy=dict(type='mmlska.ShardedStrategy'),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=Pictures(),
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate'),
        ),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        default_hooks=dict(checkpoint=checkpoints),
        randomness=dict(seed=0),
        resume=resume,
    ).train()


if __name__ == '__main__':
    torch.set_num_threads(1)
    end_process_group_at_exit()
    start_gloo()
    root = Path(sys.argv[1])
    train(root / 'whole', END)
    train(root / 'cut', CUT)
    train(root / 'cut', END, resume=True)
