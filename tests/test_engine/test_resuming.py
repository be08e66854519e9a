import re
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from script_runs import last_log, new_managers
from torch import nn
from torch.optim import SGD, AdamW, RMSprop
from toy_training import Toy, toy_runner

from mmlska.engine.config import load_config
from mmlska.engine.launch import build_runner
from mmlska.engine.resuming import check_same_model, check_same_optimizer
from mmlska.models import VAN

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'


class Detector(nn.Module):
    """A backbone and a head for some classes."""

    def __init__(self, classes: int = 3, kernel_size: int = 7) -> None:
        super().__init__()
        arch = dict(embed_dims=[4] * 4, depths=[1] * 4, ffn_ratios=[1] * 4)
        self.backbone = VAN(arch, attention=dict(type='LSKA', kernel_size=kernel_size))
        self.head = nn.Linear(8, classes)
        self.register_buffer('queue', torch.zeros(classes))


def optimizer_of(model: nn.Module, kind: type = AdamW, groups: int = 1) -> OptimWrapper:
    parameters = list(model.parameters())
    return OptimWrapper(kind([dict(params=parameters[i::groups]) for i in range(groups)], lr=0.1))


def test_the_model_of_the_training_is_taken_whatever_wraps_it():
    weights = Detector().state_dict()
    check_same_model(Detector(), weights, 'a.pth')
    check_same_model(Detector(), {f'module.{key}': weights[key] for key in weights}, 'a.pth')


@pytest.mark.parametrize(
    ('lost', 'found'),
    [
        (
            None,
            'has in another shape 2 weights (head.weight (checkpoint (5, 8), model (3, 8)), head.b',
        ),
        ('head.weight', 'lacks 1 weights (head.weight), and has in another shape 1 weights (head.'),
    ],
)
def test_another_model_is_refused_by_its_weights_and_the_way_out_is_told(lost, found):
    weights = Detector(classes=5).state_dict()
    weights.pop(lost, None)
    with pytest.raises(ValueError, match=re.escape(found)) as error:
        check_same_model(Detector(), weights, 'a.pth')
    assert 'leave --resume out and add --cfg-options load_from=a.pth' in str(error.value)


def test_a_backbone_that_speaks_for_itself_and_buffers_are_passed_over():
    weights = Detector(kernel_size=11).state_dict()
    weights['queue'] = torch.zeros(7)
    check_same_model(Detector(kernel_size=7), weights, 'a.pth')


@pytest.mark.parametrize('kind', [SGD, AdamW, RMSprop])
def test_the_optimizer_of_the_training_is_taken(kind):
    optimizer = optimizer_of(Detector(), kind, groups=2)
    check_same_optimizer(optimizer, optimizer.state_dict(), 'a.pth')
    both = OptimWrapperDict(one=optimizer, other=optimizer_of(nn.Linear(2, 2)))
    check_same_optimizer(both, both.state_dict(), 'a.pth')


@pytest.mark.parametrize(
    ('optimizer', 'difference'),
    [
        (optimizer_of(nn.Linear(2, 2), groups=2), 'has 2 parameters in 1 groups, that of the '),
        (optimizer_of(Toy()), 'has 2 parameters in 1 groups, that of the config 6 in 1'),
        (optimizer_of(nn.Linear(2, 2)), 'has no betas, eps, as AdamW of the config does'),
    ],
)
def test_another_optimizer_is_refused_by_how_it_differs(optimizer, difference):
    saved = optimizer_of(nn.Linear(2, 2), SGD).state_dict()
    with pytest.raises(ValueError, match=difference):
        check_same_optimizer(optimizer, saved, 'a.pth')
    several = OptimWrapperDict(one=optimizer)
    with pytest.raises(ValueError, match=difference):
        check_same_optimizer(several, dict(one=saved), 'a.pth')


def widen(run: Runner) -> None:
    run.model.net[0] = nn.Linear(4, 9)


def take_adam(run: Runner) -> None:
    run.optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.1))


@pytest.mark.parametrize(
    ('change', 'named'),
    [(widen, r'2 weights \(net\.0\.weight'), (take_adam, 'no betas')],
)
def test_a_run_stops_before_its_optimizer_takes_what_does_not_fit(tmp_path, change, named):
    toy_runner(tmp_path, length=1).train()
    run = toy_runner(tmp_path, length=2, resume=True)
    change(run)
    with pytest.raises(ValueError, match=named):
        run.train()


@pytest.mark.parametrize(
    ('config', 'library', 'head', 'fresh'),
    [
        ('small_retinanet', 'mmdet', 'bbox_head', {'bbox_head.retina_cls'}),
        ('small_fpn', 'mmseg', 'decode_head', {'decode_head.conv_seg'}),
    ],
)
def test_load_from_names_the_layers_of_other_classes_and_loads_all_others(
    config, library, head, fresh, tmp_path
):
    pytest.importorskip(library)

    def run_of(classes: int):
        options = {f'model.{head}.num_classes': classes}
        cfg = load_config(CONFIGS / f'{config}.py', options)
        cfg.work_dir = str(tmp_path / f'of_{classes}')
        return build_runner(cfg)

    with new_managers():
        trained, file = run_of(4).model, tmp_path / 'trained.pth'
    torch.save(dict(state_dict=trained.state_dict()), file)
    with new_managers():
        run = run_of(6)
        start = {key: value.clone() for key, value in run.model.state_dict().items()}
        run.load_checkpoint(str(file), map_location='cpu')
        loaded = run.model.state_dict()
    other = {f'{name}.{kind}' for name in fresh for kind in ('weight', 'bias')}
    (line,) = re.findall(r'another shape in the checkpoint.*', last_log(tmp_path / 'of_6'))
    assert set(re.findall(r'([\w.]+) \(checkpoint', line)) == other
    for key, value in loaded.items():
        assert torch.equal(value, start[key] if key in other else trained.state_dict()[key]), key
