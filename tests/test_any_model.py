"""What docs/any_model.md says: stock models with a backbone of ours take a step and predict.

The page is the list. A section holds the lines for a config and, in its text, the paths of further
configs that the same lines are for; the last one names models that take none of our backbones.
"""

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fake_batches import fake_batch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from script_runs import new_managers
from test_configs import library
from torch import nn

from mmlska import models
from mmlska.engine import check_channels
from mmlska.models import VAN

PAGE = Path(__file__).parents[1] / 'docs' / 'any_model.md'
SECTIONS = re.split(r'^#{2,3} ', PAGE.read_text(encoding='utf-8'), flags=re.MULTILINE)
SNIPPET = re.compile(r"^```python\n(_base_ = '.+?\b(\w+/[\w.-]+\.py)'\n.*?)^```", re.S | re.M)
CONFIG = re.compile(r'`(\w+/[\w.-]+\.py)`')

# What keeps a step cheap and changes no layer but queries, which are parameters.
SMALL = dict(max_per_img=40, nms_pre=200, num_queries=60, size=(64, 64), batch_augments=None)


def configs_of(section: str) -> list[str]:
    """The lines of a section, once for each of its configs."""
    found = SNIPPET.search(section)
    if not found:
        return []
    lines, first = found.groups()
    return [lines.replace(first, config) for config in (first, *CONFIG.findall(section))]


def every(configs: list[str]) -> pytest.MarkDecorator:
    names = [re.search(r"(\w+)(?:::|/\.mim).*?([\w.-]+)\.py'", config) for config in configs]
    ids = [f'{name[1]}-{name[2]}' for name in names]
    return pytest.mark.parametrize('config', configs, ids=ids)


def read(config: str) -> Config:
    """A config that stands in the current folder; a skip where its library is absent."""
    scope = re.search(r"'(?:PATH/TO/)?(\w+)", config)[1]
    library(scope)
    pytest.importorskip('mmcv.ops', reason='mmcv was built without its operators')
    if 'maskformer' in config or 'mask2former' in config:
        library('mmdet')  # MMSegmentation takes these heads from it
    package = Path(find_spec(scope).origin).parent
    Path('mine.py').write_text(config.replace(f'PATH/TO/{scope}', str(package)))
    return Config.fromfile('mine.py')


def shrink(settings):
    """A model's settings with few regions and queries, for small images."""
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(shrink, settings))
    if not isinstance(settings, dict):
        return settings
    return {key: SMALL.get(key, shrink(value)) for key, value in settings.items()}


def build(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(ConfigDict(shrink(cfg.model.to_dict())))


def batch_for(cfg: Config) -> dict:
    masks = any(step.get('with_mask') for step in cfg.train_pipeline)
    return fake_batch(cfg.default_scope, num_classes=10, with_mask=masks)


def loss_of(model: nn.Module, batch: dict) -> torch.Tensor:
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    return loss


def predict(model: nn.Module, batch: dict) -> list[torch.Tensor]:
    """Scores of what the model finds in each image."""
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(copy.deepcopy(batch), False), mode='predict')
    return [scores_of(result) for result in results]


def scores_of(result) -> torch.Tensor:
    if 'pred_instances' in result:
        return result.pred_instances.scores
    return result.seg_logits.data if 'seg_logits' in result else result.pred_score


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The folder of a user in the first epoch of a run, which TOOD's head asks for."""
    monkeypatch.chdir(tmp_path)
    with new_managers():
        MessageHub.get_current_instance().update_info('epoch', 0)
        yield tmp_path


@pytest.mark.slow
@every([config for section in SECTIONS for config in configs_of(section)])
def test_a_stock_model_takes_a_step_and_predicts(config, user):
    cfg = read(config)
    model, batch = build(cfg), batch_for(cfg)
    assert isinstance(model.backbone, VAN)
    model.init_weights()  # stops where weights of the stock backbone are still named
    check_channels(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    stem = model.backbone.patch_embed1.projection.weight
    before = stem.detach().clone()

    loss = loss_of(model.train(), batch)
    loss.backward()
    assert torch.isfinite(loss)
    # DistributedDataParallel stops at a parameter that reaches no loss.
    assert not [n for n, weight in model.backbone.named_parameters() if weight.grad is None]
    assert torch.isfinite(stem.grad).all() and stem.grad.any()
    optimizer.step()
    assert not torch.equal(stem, before)

    scores = predict(model, batch)
    assert len(scores) == 2
    assert all(torch.isfinite(of_image).all() for of_image in scores)


# Models of the page's last sections: what one would write, and what comes of it.
FPN = """model = dict(
    backbone=dict(_delete_=True, type='mmlska.VAN', arch='tiny'),
    neck=dict(in_channels=[32, 64, 160, 256]{}))
"""
C4 = """model = dict(
    backbone=dict(_delete_=True, type='mmlska.VAN', arch='tiny', out_indices=(2,)),
    rpn_head=dict(in_channels=160))
"""
SEGMENTOR = (
    "model = dict(pretrained=None, backbone=dict(_delete_=True, type='mmlska.VAN', arch='tiny'))"
)
RFP = ", rfp_backbone=dict(_delete_=True, type='mmlska.VAN', arch='tiny')"
UNFIT = {
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py': (C4, RuntimeError, '1024 channels'),
    'mmdet::detectors/cascade-rcnn_r50-rfp_1x_coco.py': (FPN.format(RFP), AssertionError, ''),
    'mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py': (C4, AttributeError, 'num_branch'),
    'PATH/TO/mmseg/.mim/configs/setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py': (
        SEGMENTOR,
        RuntimeError,
        '1024',
    ),
    'PATH/TO/mmseg/.mim/configs/pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py': (
        SEGMENTOR,
        ValueError,
        'expected 3',
    ),
}
NO_CPU_FORM = '{}.*: implementation for device cpu not found'
LOSS_OPERATOR = 'diff_iou_rotated_sort_vertices'
ON_A_GPU = {
    'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py': 'carafe',
    'mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py': LOSS_OPERATOR,
    'mmrotate::rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py': LOSS_OPERATOR,
}


@pytest.mark.slow
@pytest.mark.parametrize('base', UNFIT)
def test_a_model_that_the_page_excludes_does_not_fit(base, user):
    lines, error, words = UNFIT[base]
    cfg = read(f"_base_ = '{base}'\n{lines}")
    with pytest.raises(error, match=words):
        loss_of(build(cfg).train(), batch_for(cfg))


@pytest.mark.slow
@pytest.mark.parametrize('base', ON_A_GPU)
def test_a_model_that_the_page_leaves_to_gpus_lacks_an_operator(base, user):
    cfg = read(f"_base_ = '{base}'\n{FPN.format('')}")
    model, batch = build(cfg), batch_for(cfg)
    check_channels(model)
    with pytest.raises(RuntimeError, match=NO_CPU_FORM.format(ON_A_GPU[base])):
        loss_of(model.train(), batch)
    if ON_A_GPU[base] == LOSS_OPERATOR:
        assert len(predict(model, batch)) == 2


@pytest.mark.parametrize(
    ('title', 'tried'), [('What trains on a GPU only', ON_A_GPU), ('What does not fit', UNFIT)]
)
def test_what_the_page_excludes_is_tried(title, tried):
    (section,) = [section for section in SECTIONS if section.startswith(f'{title}\n')]
    ends = [re.search(r'\w+/[\w.-]+$', base)[0] for base in tried]
    assert sorted(CONFIG.findall(section)) == sorted(ends)


def test_the_page_states_the_channels_of_every_backbone():
    rows = re.findall(r'^\| (`\w+\(.*\)`) \| ([\d, ]+) \|$', SECTIONS[1], re.MULTILINE)
    stated = {call: maps for calls, maps in rows for call in re.findall('`(.+?)`', calls)}
    assert {f'VAN({arch!r})' for arch in ('tiny', 'small', 'base', 'large', 'b0')} < {*stated}
    for call, channels in stated.items():
        with torch.device('meta'):
            backbone = eval(call, vars(models))
        assert ', '.join(map(str, backbone.out_channels)) == channels, call
