"""The READMEs say what is: their snippets are configs that build, their links and paths exist."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / 'README.md', ROOT / 'README_zh-CN.md']
READMES = [*TOP, *sorted(ROOT.glob('configs/*/README.md')), *sorted(ROOT.glob('docs/*.md'))]


def snippets(path):
    return re.findall(r'```python\n(.*?)```', path.read_text(encoding='utf-8'), re.DOTALL)


def config(path, text, tmp_path):
    (snippet,) = [snippet for snippet in snippets(path) if text in snippet]
    file = tmp_path / 'config.py'
    file.write_text(snippet.replace('PATH/TO/mmlska', str(ROOT)))
    return Config.fromfile(file)


def build(cfg):
    pytest.importorskip(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('readme', TOP, ids=lambda path: path.name)
def test_the_first_snippet_puts_the_backbone_into_mask_rcnn(readme, tmp_path):
    pytest.importorskip('mmdet')
    model = build(config(readme, "_base_ = 'mmdet::", tmp_path))
    assert type(model.backbone).__name__ == 'VAN'
    assert tuple(model.neck.in_channels) == model.backbone.out_channels


@pytest.mark.parametrize('readme', TOP, ids=lambda path: path.name)
def test_the_snippet_for_own_instances_takes_all_of_it(readme, tmp_path):
    pytest.importorskip('mmdet')
    cfg = config(readme, 'screw', tmp_path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == ('screw', 'nut')
        assert loader.dataset.data_root == 'data/parts/'
        assert loader.dataset.data_prefix.img == 'images/'
    assert cfg.test_evaluator.ann_file == 'data/parts/val.json'
    model = build(cfg)
    assert (model.roi_head.bbox_head.num_classes, model.roi_head.mask_head.num_classes) == (2, 2)


@pytest.mark.parametrize('readme', TOP, ids=lambda path: path.name)
def test_the_snippet_for_own_label_maps_takes_all_of_it(readme, tmp_path):
    pytest.importorskip('mmseg')
    cfg = config(readme, 'weed', tmp_path)
    for loader, part in ((cfg.train_dataloader, 'train'), (cfg.test_dataloader, 'val')):
        assert loader.dataset.type == 'BaseSegDataset'
        assert loader.dataset.data_prefix.seg_map_path == f'labels/{part}'
        assert loader.dataset.metainfo.classes == ('soil', 'crop', 'weed')
        assert loader.dataset.pipeline[0].type == 'LoadImageFromFile'
    assert build(cfg).decode_head.num_classes == 3


@pytest.mark.parametrize('readme', TOP, ids=lambda path: path.name)
@pytest.mark.parametrize('task', ['mmdet', 'mmseg'])
def test_the_plugin_snippet_puts_attention_into_a_resnet(readme, task, tmp_path):
    pytest.importorskip(task)
    plugins = config(readme, "position='after_conv3'", tmp_path).model.backbone.plugins
    with DefaultScope.overwrite_default_scope(task):
        resnet = MODELS.build(dict(type=f'{task}.ResNet', depth=50, plugins=plugins))
    assert not hasattr(resnet.layer1[0], 'lska')
    assert type(resnet.layer2[0].lska).__name__ == 'LSKA'


@pytest.mark.parametrize('readme', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(readme):
    text = readme.read_text(encoding='utf-8')
    headings = {
        re.sub(r'[^\w\- ]', '', line.lstrip('# ').lower()).replace(' ', '-')
        for line in text.splitlines()
        if line.startswith('#')
    }
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith('#'):
            assert target[1:] in headings, target
        elif '://' not in target:
            assert (readme.parent / target.split('#')[0]).exists(), target


@pytest.mark.parametrize('readme', READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_files_that_exist(readme):
    commands = re.findall(r'```shell\n(.*?)```', readme.read_text(encoding='utf-8'), re.DOTALL)
    for name in re.findall(
        r'(?<![\w/$])(?:tools|demo|configs)/[\w./-]+\.(?:py|sh)', ''.join(commands)
    ):
        assert (ROOT / name).is_file(), name


def test_both_languages_have_the_same_sections_tables_and_code():
    english, chinese = (path.read_text(encoding='utf-8') for path in TOP)
    for pattern in (r'^#+ ', r'^\|', r'^```'):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
