"""Each training option on each kind of recipe: it arrives, and an iteration of training runs."""

import inspect
import math
import re
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from script_runs import new_managers
from short_runs import train
from test_configs import CONFIGS, DETECTORS, every, library, scope_of
from test_short_training import short_run
from torch_versions import since

from mmlska.engine.config import OTHER_KEYS

OPTIONS = Path(__file__).resolve().parents[1] / 'configs' / '_base_' / 'training_options.py'
FOR_ALL = ('bf16', 'fused_optimizer', 'with_cp', 'loading')
FOR_DETECTORS = (*FOR_ALL, 'non_blocking', 'faster_coco')
# All three backbones and ResNet, detectors of one and of two stages, both kinds of optimizer.
TRAINED = {
    'mask-rcnn_van-lska-tiny_fpn_1x_coco': FOR_DETECTORS,
    'retinanet_ghostnetv2-100_fpn_1x_coco': FOR_DETECTORS,
    'faster-rcnn_r50-eca_fpn_1x_coco': FOR_DETECTORS,
    'fpn_container-light_4xb4-80k_ade20k-512x512': FOR_ALL,
    'fpn_r50-eca_4xb4-80k_ade20k-512x512': FOR_ALL,
}


# One config of each folder for each kind of model in it.
KINDS = list({(path.parent, path.stem.split('_')[0]): path for path in CONFIGS}.values())


def options_of(path):
    return FOR_DETECTORS if scope_of(path) == 'mmdet' else FOR_ALL


def with_options(folder, recipe, options, more=''):
    """Path of a user's config: a recipe, one line for each option, and the user's own settings."""
    lines = [f'_base_ = [{str(recipe)!r}, {str(OPTIONS)!r}]']
    lines += [f'_base_.merge(_base_.{option})' for option in options]
    path = folder / f'my_{Path(str(recipe)).stem}.py'
    path.write_text('\n'.join([*lines, more]))
    return path


def path_of(recipe):
    (path,) = [path for path in CONFIGS if path.stem == recipe]
    return path


def leaves(settings, key=''):
    """The single values of nested settings, by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {key: settings}
    return {
        name: value
        for part, inner in settings.items()
        for name, value in leaves(inner, f'{key}.{part}'.lstrip('.')).items()
    }


@every(KINDS)
def test_options_change_what_they_name_and_nothing_else(path, tmp_path):
    if scope_of(path) in DETECTORS:
        library(scope_of(path))
    options, names = Config.fromfile(OPTIONS), options_of(path)
    got = leaves(Config.fromfile(with_options(tmp_path, path, names)).to_dict())
    expected = leaves(Config.fromfile(path).to_dict())
    for name in names:
        expected.update(leaves(options[name].to_dict()))
    unused = leaves(options.to_dict())
    assert not unused.keys() & expected.keys()
    assert {k: v for k, v in got.items() if k not in unused} == expected


@pytest.mark.parametrize(
    'recipe', ['mask-rcnn_van-lska-tiny_fpn_1x_coco', 'fpn_r50-eca_4xb4-80k_ade20k-512x512']
)
def test_options_compose_in_any_order(recipe, tmp_path):
    if 'coco' in recipe:
        library('mmdet')
    names = TRAINED[recipe]
    there = Config.fromfile(with_options(tmp_path, path_of(recipe), names))
    back = Config.fromfile(with_options(tmp_path, path_of(recipe), names[::-1]))
    assert there.to_dict() == back.to_dict()


def test_the_users_own_settings_win_and_a_dump_keeps_all(tmp_path):
    library('mmdet')
    recipe = path_of('mask-rcnn_van-lska-tiny_fpn_1x_coco')
    more = 'train_dataloader = dict(num_workers=3)\noptim_wrapper = dict(optimizer=dict(lr=1e-5))'
    cfg = Config.fromfile(with_options(tmp_path, recipe, FOR_DETECTORS, more))
    assert cfg.train_dataloader.num_workers == 3 and cfg.train_dataloader.prefetch_factor == 4
    assert cfg.optim_wrapper.optimizer.lr == 1e-5 and cfg.optim_wrapper.optimizer.fused
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


def test_a_recipe_of_mmdet_takes_them_too(tmp_path):
    library('mmdet')
    recipe = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    cfg = Config.fromfile(with_options(tmp_path, recipe, FOR_DETECTORS))
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.optimizer.fused
    assert cfg.model.backbone.with_cp and cfg.model.backbone.depth == 50


def test_the_documents_snippet_adds_every_option(tmp_path):
    library('mmdet')
    root = OPTIONS.parents[2]
    text = (root / 'docs' / 'training_options.md').read_text(encoding='utf-8')
    snippet = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    (tmp_path / 'mine.py').write_text(snippet.replace('PATH/TO/mmlska', str(root)))
    recipe = path_of('mask-rcnn_van-lska-tiny_fpn_1x_coco')
    expected = Config.fromfile(
        with_options(tmp_path, recipe, FOR_DETECTORS, 'train_dataloader = dict(num_workers=16)')
    )
    assert Config.fromfile(tmp_path / 'mine.py').to_dict() == expected.to_dict()
    assert {*Config.fromfile(OPTIONS)} == {*FOR_DETECTORS}
    assert all(f'| `{option}` |' in text for option in FOR_DETECTORS)


def test_the_documents_command_lines_set_what_the_options_set(tmp_path):
    library('mmdet')
    root = OPTIONS.parents[2]
    text = (root / 'docs' / 'training_options.md').read_text(encoding='utf-8')
    given = dict(re.findall(r'([a-z_.\d]+)=(\S+)', text.split('```shell')[1].split('```')[0]))
    options = Config.fromfile(OPTIONS)
    for name in ('bf16', 'fused_optimizer', 'with_cp', 'faster_coco'):
        for key, value in leaves(options[name].to_dict()).items():
            assert given.pop(key) == str(value)
    assert not given


def test_no_option_has_the_name_of_a_setting():
    read = {*inspect.signature(Runner).parameters, *OTHER_KEYS}
    read |= {'activation_checkpointing', 'efficient_conv_bn_eval'}
    assert not Config.fromfile(OPTIONS).keys() & read


class Watch(Hook):
    """Keeps what an iteration computes with."""

    def __init__(self):
        self.taken, self.given = defaultdict(set), defaultdict(set)

    def before_train(self, runner):
        for module in runner.model.modules():
            name = type(module).__name__
            if name == 'Conv2d' or name.endswith(('Loss', 'RoIExtractor')):
                module.register_forward_hook(self.keep_types(name))

    def keep_types(self, name):
        def hook(module, args, output):
            tensors = [x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]
            self.taken[name].update(x.dtype for x in tensors)
            self.given[name].add(output.dtype)

        return hook


@pytest.fixture
def amp_on_the_cpu(monkeypatch):
    """mmengine refuses AMP without a GPU; what it does in bfloat16 runs on the CPU all the same."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    if not torch.cuda.is_available():
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)


def one_iteration(path, scenes, folder):
    """The runner after an iteration with the loader settings of the config, and what was seen."""
    library('mmseg' if 'ade20k' in path.stem else 'mmdet')
    cfg = short_run(str(path), scenes, folder, iterations=1, workers=1)
    cfg.randomness = dict(seed=0)
    watch = Watch()
    with new_managers():
        runner = train(cfg, watch)
    assert len(runner.losses) == 1
    return runner, watch


def check_bf16(runner, watch):
    assert type(runner.optim_wrapper).__name__ == 'AmpOptimWrapper'
    assert not runner.optim_wrapper.loss_scaler.is_enabled()
    assert watch.given['Conv2d'] == {torch.bfloat16}
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    if runner.cfg.default_scope == 'mmdet':
        exact = {name: types for name, types in watch.taken.items() if name != 'Conv2d'}
        assert 'L1Loss' in exact
        assert ('SingleRoIExtractor' in exact) == ('roi_head' in runner.cfg.model)
        assert all(types == {torch.float32} for types in exact.values()), exact


def check_fused_optimizer(runner, watch):
    optimizer = runner.optim_wrapper.optimizer
    assert type(optimizer).__name__ == runner.cfg.optim_wrapper.optimizer.type
    assert all(group['fused'] is True for group in optimizer.param_groups)


def check_with_cp(runner, watch):
    switches = [m.with_cp for m in runner.model.backbone.modules() if hasattr(m, 'with_cp')]
    assert len(switches) > 4 and all(switches)


def check_loading(runner, watch):
    loader = runner.train_dataloader
    assert loader.pin_memory and loader.persistent_workers and loader.prefetch_factor == 4


def check_non_blocking(runner, watch):
    assert runner.model.data_preprocessor._non_blocking is True


CHECKS = dict(
    bf16=check_bf16,
    fused_optimizer=check_fused_optimizer,
    with_cp=check_with_cp,
    loading=check_loading,
    non_blocking=check_non_blocking,
)


@since('2.4', 'its fused optimizers need a GPU')
@pytest.mark.parametrize('scaled', [False, True])
def test_fused_adamw_keeps_rates_and_decay_by_parameter_clips_and_scales(scaled, amp_on_the_cpu):
    recipe = path_of('upernet_van-lska-base_8xb2-160k_ade20k-512x512')
    settings = Config.fromfile(recipe).optim_wrapper
    assert settings.paramwise_cfg
    settings.merge(dict(clip_grad=dict(max_norm=0.1)))
    if scaled:
        settings.merge(dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic'))
    weights = []
    for options in ({}, Config.fromfile(OPTIONS).fused_optimizer):
        cfg = Config(dict(optim_wrapper=settings))
        cfg.merge_from_dict(options)
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            OrderedDict(conv=torch.nn.Conv2d(2, 3, 3), norm=torch.nn.BatchNorm2d(3))
        )
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        if scaled:
            wrapper.loss_scaler = torch.amp.GradScaler('cpu')
        for _ in range(3):
            wrapper.update_params(model(torch.rand(2, 2, 5, 5)).square().mean())
        decays = {group['weight_decay'] for group in wrapper.optimizer.param_groups}
        assert decays == {0.0, 0.01}
        weights.append(model.state_dict())
    assert wrapper.optimizer.param_groups[0]['fused']
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize('recipe', TRAINED)
def test_an_iteration_with_all_options(recipe, scenes, tmp_path, amp_on_the_cpu):
    path = with_options(tmp_path, path_of(recipe), TRAINED[recipe])
    runner, watch = one_iteration(path, scenes, tmp_path / 'all')
    for option in set(TRAINED[recipe]) & set(CHECKS):
        CHECKS[option](runner, watch)


@pytest.mark.slow
def test_an_iteration_with_one_option_goes_like_one_without(scenes, tmp_path, amp_on_the_cpu):
    recipe = path_of('mask-rcnn_van-lska-tiny_fpn_1x_coco')
    plain, _ = one_iteration(with_options(tmp_path, recipe, ()), scenes, tmp_path / 'none')
    expected = plain.model.state_dict()
    # How far the weights may be off; in bfloat16 AdamW's first steps go both ways by its rate.
    tolerances = dict(bf16=2.1e-4, fused_optimizer=1e-7, with_cp=0)
    for option, tolerance in tolerances.items():
        path = with_options(tmp_path, recipe, (option,))
        runner, watch = one_iteration(path, scenes, tmp_path / option)
        CHECKS[option](runner, watch)
        for other in set(tolerances) - {option}:
            with pytest.raises((AssertionError, KeyError)):
                CHECKS[other](runner, watch)
        assert runner.losses == pytest.approx(plain.losses, rel=0.05 if option == 'bf16' else 0)
        trained = dict(runner.model.named_parameters())
        for key, value in runner.model.state_dict().items():
            bound = tolerance if key in trained or option != 'bf16' else math.inf
            assert (value - expected[key]).abs().max() <= bound, (option, key)
