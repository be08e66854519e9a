"""A training of seconds that has all that can be lost: augmentation, drop-out, momentum, a best."""

import gc
from pathlib import Path

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

SAMPLES = 24
BATCH = 4
BATCHES = SAMPLES // BATCH


class NoisySamples(BaseDataset):
    """Vectors, shifted by a random number each time they are read."""

    def load_data_list(self) -> list[dict]:
        values = torch.linspace(-1, 1, SAMPLES * 4).view(SAMPLES, 4)
        return [dict(inputs=row) for row in values]

    def prepare_data(self, idx: int) -> dict:
        sample = self.get_data_info(idx)
        return dict(inputs=sample['inputs'] + 0.1 * torch.randn(()))


class Toy(BaseModel):
    """A perceptron with drop-out that learns to add."""

    def __init__(self, ballast: int = 0) -> None:
        super().__init__()
        self.register_buffer('ballast', torch.ones(ballast))
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor'):
        inputs = torch.stack(list(inputs))
        predictions = self.net(inputs)
        if mode == 'loss':
            return dict(loss=(predictions[:, 0] - inputs.sum(1)).square().mean())
        return list(predictions)


class Rising(BaseMetric):
    """A figure that is better each time."""

    calls = 0

    def process(self, data_batch, data_samples) -> None:
        # As a metric may; it must not change what is trained.
        torch.rand(1)
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        Rising.calls += 1
        return dict(acc=Rising.calls)


class ToyRunner(Runner):
    """A runner that does not ask the compilers of the machine for their versions."""

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info('no look at the environment')


class Call(Hook):
    """Call something before an iteration, counted from 0."""

    def __init__(self, at: int, action) -> None:
        self.at, self.action = at, action

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.at:
            self.action()


def loader(
    num_workers: int = 0,
    persistent_workers: bool = False,
    infinite: bool = False,
    batch_size: int = BATCH,
) -> dict:
    sampler = 'InfiniteSampler' if infinite else 'DefaultSampler'
    return dict(
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=persistent_workers and num_workers > 0,
        sampler=dict(type=sampler, shuffle=True),
        dataset=NoisySamples(serialize_data=False),
    )


def toy_runner(
    work_dir: Path,
    by_epoch: bool = True,
    length: int = 3,
    hooks: list[Hook] = (),
    checkpoint: dict | None = None,
    num_workers: int = 0,
    persistent_workers: bool = False,
    ballast: int = 0,
    batch_size: int = BATCH,
    runner: type = ToyRunner,
    **options,
) -> Runner:
    """A runner that trains epochs, or iterations, and evaluates after each interval.

    Its files have four bytes more for each unit of ballast.
    """
    kind = dict(by_epoch=True, max_epochs=length, val_interval=1)
    if not by_epoch:
        kind = dict(by_epoch=False, max_iters=length, val_interval=4)
    saving = dict(
        type='mmlska.SafeCheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4
    )
    torch.manual_seed(0)
    return runner(
        model=Toy(ballast),
        work_dir=str(work_dir),
        train_dataloader=loader(num_workers, persistent_workers, not by_epoch, batch_size),
        val_dataloader=loader(),
        train_cfg=kind,
        val_cfg=dict(),
        val_evaluator=Evaluator(Rising()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.003, momentum=0.9)),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=40, by_epoch=False),
        default_hooks=dict(
            checkpoint=saving | (checkpoint or {}),
            interruption=dict(type='mmlska.InterruptionHook'),
        ),
        custom_hooks=list(hooks),
        randomness=dict(seed=0),
        experiment_name=f'toy_{work_dir.name}_{torch.rand(1).item()}',
        **options,
    )


def weights(runner: Runner) -> torch.Tensor:
    """All parameters and buffers in one vector."""
    return torch.cat([value.flatten().double() for value in runner.model.state_dict().values()])


def stop_workers(runner: Runner) -> None:
    """End the workers of the training, which would wait for those that are started later."""
    vars(runner.train_loop).pop('dataloader_iterator', None)
    runner.train_dataloader._iterator = None
    gc.collect()
