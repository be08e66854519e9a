import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from mmlska.deploy import is_fused
from mmlska.engine import FusingHook, launch


class Classifier(BaseModel):
    """Something that a runner can test."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, *images, mode='tensor'):
        return [self.layers(image[None]) for image in images]


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return dict(images=sum(results))


class Watch(Hook):
    """Keeps which models were tested and what they gave."""

    def __init__(self):
        self.models, self.outs = set(), []

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.models.add(runner.model)
        self.outs += outputs


class Exchange(EMAHook):
    """Mmengine's exchange of weights for a test, with averages that differ from the weights."""

    def before_test(self, runner):
        super().before_run(runner)
        with torch.no_grad():
            for parameter in self.ema_model.parameters():
                parameter.mul_(2)


@MODEL_WRAPPERS.register_module(force=True)
class Wrapper(nn.Module):
    """What surrounds the model of a distributed job."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def test_step(self, data):
        return self.module.test_step(data)


def make_runner(folder, model, *hooks):
    torch.manual_seed(0)
    images = list(torch.randn(3, 3, 8, 8))
    sampler = dict(type='DefaultSampler', shuffle=False)
    runner = Runner(
        model,
        str(folder),
        test_dataloader=dict(dataset=images, batch_size=2, num_workers=0, sampler=sampler),
        test_cfg=dict(),
        test_evaluator=NoMetric(),
        default_scope='mmengine',
    )
    for hook in hooks:
        runner.register_hook(hook)
    return runner


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Classifier()
    for tensor in model.layers[1].state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize('wrap', [lambda model: model, Wrapper], ids=['alone', 'wrapped'])
@pytest.mark.parametrize('others', [[], [Exchange]], ids=['weights', 'averages'])
def test_the_fused_model_is_tested_and_gives_the_same(wrap, others, model, tmp_path):
    outs = []
    for hooks in ([], [FusingHook()]):
        watch = Watch()
        runner = make_runner(tmp_path, wrap(model), *hooks, *[kind() for kind in others], watch)
        whole = runner.model
        assert runner.test() == dict(images=3)
        assert runner.model is whole
        assert [is_fused(m) for m in watch.models] == [bool(hooks)]
        outs.append(torch.cat(watch.outs))
    assert not torch.equal(*outs) and torch.allclose(*outs, rtol=1e-5, atol=1e-6)
    assert isinstance(model.layers[1], nn.BatchNorm2d) and model.layers[0].weight.requires_grad


def test_the_option_of_the_tool_adds_the_hook(monkeypatch):
    for name in ('check_checkpoint', 'check_data'):
        monkeypatch.setattr(launch, name, lambda *_: None)
    for hooks in (None, [dict(type='mmlska.BackboneCheckHook')]):
        cfg = Config(dict(default_scope='mmdet', custom_hooks=hooks))
        monkeypatch.setattr(launch, 'load_config', lambda *_, cfg=cfg: cfg)
        prepared = launch.prepare_testing('a.py', 'a.pth', fuse=True)
        assert prepared.custom_hooks == [*(hooks or []), dict(type='mmlska.FusingHook')]
        assert HOOKS.get(prepared.custom_hooks[-1]['type']) is FusingHook
    assert launch.prepare_testing('a.py', 'a.pth').custom_hooks == prepared.custom_hooks
