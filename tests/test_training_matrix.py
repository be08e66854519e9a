"""Accumulated gradients, EMA, bfloat16 and recomputation, all together, against a loop by hand."""

import copy
import itertools

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from script_runs import new_managers
from torch import nn
from torch.nn import functional as F

from mmlska.models import VAN

ARCH = dict(embed_dims=[8, 8], depths=[1, 2], ffn_ratios=[2, 2])
ITERATIONS, BATCH, LR, MOMENTUM = 4, 2, 0.05, 0.1


class Classifier(BaseModel):
    def __init__(self, with_cp=False):
        super().__init__()
        self.backbone = VAN(ARCH, dict(type='LSKA', kernel_size=7), with_cp=with_cp, out_indices=1)
        self.head = nn.Linear(8, 3)

    def forward(self, images, labels, mode='loss'):
        scores = self.head(self.backbone(images)[0].mean((2, 3)))
        return dict(loss=F.cross_entropy(scores, labels))


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(torch.randn(BATCH, 3, 24, 24), torch.randint(3, (BATCH,))) for _ in range(ITERATIONS)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier()


def by_hand(model, batches, accumulation, bf16):
    """The trained model, and the running average of all that it was."""
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for i, (images, labels) in enumerate(batches, 1):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            loss = model(images, labels)['loss'] / accumulation
        loss.backward()
        if i % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            # The first update copies.
            mean.data.lerp_(value.data, MOMENTUM if i > 1 else 1.0)
    return model, average


def by_runner(model, batches, accumulation, bf16, ema, folder):
    samples = [sample for batch in batches for sample in zip(*batch, strict=True)]
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=LR))
    if bf16:
        wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
    hooks = [dict(type='EMAHook', momentum=MOMENTUM)] if ema else []
    runner = Runner(
        model,
        str(folder),
        train_dataloader=torch.utils.data.DataLoader(samples, batch_size=BATCH),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(wrapper, accumulative_counts=accumulation),
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=None, logger=None),
        log_level='ERROR',
    )
    runner.train()
    hook = next((hook for hook in runner.hooks if hasattr(hook, 'ema_model')), None)
    return runner.model, hook and hook.ema_model.module


def distance(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize(
    ('accumulation', 'ema', 'bf16', 'with_cp'),
    itertools.product([1, 2], [False, True], [False, True], [False, True]),
)
def test_options_together_train_as_a_loop_by_hand_does(
    accumulation, ema, bf16, with_cp, model, batches, tmp_path, monkeypatch
):
    # mmengine refuses mixed precision on a CPU, where bfloat16 computes all the same.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    own = Classifier(with_cp)
    own.load_state_dict(model.state_dict())
    start = copy.deepcopy(model)
    expected, average = by_hand(model, batches, accumulation, bf16)
    with new_managers():
        trained, own_average = by_runner(own, batches, accumulation, bf16, ema, tmp_path)
    assert distance(expected, start) > 1e-3
    assert distance(trained, expected) < (1e-4 if bf16 else 1e-6)
    if ema:
        assert distance(average, expected) > 1e-4
        assert distance(own_average, average) < (1e-4 if bf16 else 1e-6)
