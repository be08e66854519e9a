"""The READMEs and docs say what is: their code runs, through a step of training where it trains."""

import configparser
import copy
import os
import re
import shlex
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from generated_data import make_data
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from script_runs import new_managers, parse_here, run
from short_runs import cut_down, train
from torch import nn

from mmlska.analysis.ablation.spec import make_spec, read_settings
from mmlska.engine.config import find_config
from mmlska.engine.launch import prepare_training
from mmlska.models import VAN

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / 'README.md', ROOT / 'README_zh-CN.md']
READMES = [*TOP, *sorted(ROOT.glob('configs/*/README.md')), *sorted(ROOT.glob('docs/**/*.md'))]
# Both READMEs hold the same code, which a test tells; it runs once.
SOURCES = [path for path in READMES if path != TOP[1]]


class Snippet(NamedTuple):
    """A block of code of a document."""

    path: Path
    language: str
    line: int
    code: str

    def __str__(self) -> str:
        return f'{self.path.relative_to(ROOT)}:{self.line}'


@cache
def snippets(path: Path) -> list[Snippet]:
    text = path.read_text(encoding='utf-8')
    return [
        Snippet(path, found[1], text.count('\n', 0, found.start()) + 1, found[2])
        for found in re.finditer(r'^```(\w+)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    ]


def all_of(*languages: str) -> list[Snippet]:
    return [s for path in SOURCES for s in snippets(path) if s.language in languages]


def with_comments_gone(code: str) -> str:
    return re.sub(r' *#.*', '', code)


# Python

# The configs of this page take a step in test_any_model.py.
ANY_MODEL = ROOT / 'docs' / 'any_model.md'

# Where a fragment of a config belongs: its first words, and the configs that it completes.
OWN_MMSEG = "_base_ = 'PATH/TO/mmlska/configs/eca/fpn_r50-eca_4xb4-80k_ade20k-512x512.py'\n{}"
FRAGMENTS = {
    '_base_ = ': ('{}',),
    'model = dict(backbone=dict(plugins=': (
        "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n{}",
        OWN_MMSEG,
    ),
    'plugins=[': (
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
        'model = dict(backbone=dict(\n{}))',
    ),
    'neck=[': ("_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'\nmodel = dict(\n{})",),
}
# Words of a snippet that stand for the user's own.
ELLIPSIS = re.compile(r"dict\(type='\w+', \.\.\.\)")


def configs_of(snippet: Snippet) -> list[str]:
    """Whole configs that a snippet of Python is meant for; none if it is a program."""
    code = ELLIPSIS.sub('{{_base_.model.neck}}', snippet.code)
    for start, wholes in FRAGMENTS.items():
        if code.startswith(start):
            wholes = [whole.replace('{}', code) for whole in wholes]
            return [whole.replace('PATH/TO/mmlska', str(ROOT)) for whole in wholes]
    return []


def numbered(snippets: list[Snippet]) -> list:
    """Every config of the snippets; one that stands on several pages is tried once."""
    first = {snippet.code: snippet for snippet in reversed(snippets)}
    return [
        pytest.param(config, id=f'{snippet}-{number}')
        for snippet in snippets
        if snippet is first[snippet.code]
        for number, config in enumerate(configs_of(snippet))
    ]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The folder of a user on a CPU, where mmengine's AMP runs in bfloat16 if one lets it."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    with new_managers():
        yield tmp_path


def read_config(text: str) -> Config:
    Path('mine.py').write_text(text)
    cfg = Config.fromfile('mine.py')
    pytest.importorskip(f'{cfg.default_scope}.models')
    return cfg


def build(cfg: Config, **changes) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build({**cfg.model, **changes})


def train_a_step(cfg: Config) -> nn.Module:
    """The model after an iteration on data that lie where the config says."""
    make_data(cfg)
    if cfg.get('load_from') and not Path(cfg.load_from).exists():
        save_trained(cfg)
    save_pretrained(cfg)
    cfg.work_dir = 'work_dir'
    workers = 1 if cfg.train_dataloader.get('prefetch_factor') else 0
    runner = train(cut_down(cfg, 1, workers))
    assert len(runner.losses) == 1
    return runner.model


def save_trained(cfg: Config) -> None:
    """Write the checkpoint that a config starts from: one of the model that its base builds."""
    bases = re.search(r"_base_ = \[?'(.+?)'", Path(cfg.filename).read_text())
    Path('base.py').write_text(f"_base_ = '{bases[1]}'")  # it may be in another package
    base = Config.fromfile('base.py')
    torch.save(dict(state_dict=build(base).state_dict()), cfg.load_from)


def save_pretrained(cfg: Config) -> None:
    """Write the file that a backbone starts from: of another kind where it is converted."""
    backbone = cfg.model.backbone
    init = backbone.get('init_cfg') or {}
    path = init.get('checkpoint') or '://'
    if '://' not in path and not Path(path).exists():
        other = {}
        if 'convert' in init:
            makes_stem = 'in_channels' in init.convert
            other = dict(in_channels=3) if makes_stem else dict(attention=dict(type='LKA'))
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build({**backbone, **other, 'init_cfg': None})
        torch.save(model.state_dict(), path)


def check_first_snippet(cfg: Config, model: nn.Module) -> None:
    assert type(model.backbone).__name__ == 'VAN'
    assert tuple(model.neck.in_channels) == model.backbone.out_channels


def check_own_instances(cfg: Config, model: nn.Module) -> None:
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == ('screw', 'nut')
        assert loader.dataset.data_root == 'data/parts/'
        assert loader.dataset.data_prefix.img == 'images/'
    assert cfg.test_evaluator.ann_file == 'data/parts/val.json'
    assert (model.roi_head.bbox_head.num_classes, model.roi_head.mask_head.num_classes) == (2, 2)


def check_own_label_maps(cfg: Config, model: nn.Module) -> None:
    for loader, part in ((cfg.train_dataloader, 'train'), (cfg.test_dataloader, 'val')):
        assert loader.dataset.type == 'BaseSegDataset'
        assert loader.dataset.data_prefix.seg_map_path == f'labels/{part}'
        assert loader.dataset.metainfo.classes == ('soil', 'crop', 'weed')
        assert loader.dataset.pipeline[0].type == 'LoadImageFromFile'
    assert model.decode_head.num_classes == 3


def check_plugins(cfg: Config, model: nn.Module) -> None:
    assert type(model.backbone.layer2[0].lska).__name__ == 'LSKA'
    assert not hasattr(model.backbone.layer1[0], 'lska')


# What some snippets promise moreover, by words of theirs.
PROMISES = {
    "type='mmlska.VAN'": check_first_snippet,
    'screw': check_own_instances,
    'weed': check_own_label_maps,
    "type='mmlska.LSKA', kernel_size=11), stages=(False": check_plugins,
}


def test_every_promise_belongs_to_a_snippet():
    code = [snippet.code for snippet in snippets(TOP[0])]
    assert all(any(words in text for text in code) for words in PROMISES)


@pytest.mark.slow
@pytest.mark.parametrize('text', numbered([s for s in all_of('python') if s.path != ANY_MODEL]))
def test_a_config_of_the_documents_trains(text, user):
    pytest.importorskip('mmdet.models')
    cfg = read_config(text)
    model = train_a_step(copy.deepcopy(cfg))
    for words, check in PROMISES.items():
        if words in text:
            check(cfg, model)


def programs() -> list[Snippet]:
    return [snippet for snippet in all_of('python') if not configs_of(snippet)]


def test_the_programs_of_the_documents_run(user):
    for snippet in programs():
        exec(compile(snippet.code, str(snippet), 'exec'), {})
    assert len(programs()) > 5


# Shell


# A config of the reader's own.
OF_THE_USER = ('CONFIG', 'mine.py')
ANY_CONFIG = 'configs/van_lska/mask-rcnn_van-lska-tiny_fpn_1x_coco.py'


def commands(snippet: Snippet) -> list[list[str]]:
    """Words of each command, with its variables put in."""
    lines = with_comments_gone(snippet.code.replace('\\\n', ' ')).splitlines()
    variables = {'CONFIG': ANY_CONFIG}
    found = []
    for line in lines:
        assigned = re.fullmatch(r'(\w+)=(\S+)', line.strip())
        if assigned:
            variables[assigned[1]] = assigned[2]
        elif words := shlex.split(re.sub(r'\$(\w+)', lambda name: variables[name[1]], line)):
            found.append(words)
    return found


def trainings() -> list:
    """Every command that trains in this process, once."""
    found = {}
    for snippet in all_of('shell'):
        for program, *words in commands(snippet):
            if program == 'python' and words[0] == 'tools/train.py':
                words = [ANY_CONFIG if word in OF_THE_USER else word for word in words[1:]]
                found.setdefault(tuple(words), str(snippet))
    return [pytest.param(words, id=f'{source} {words[0]}') for words, source in found.items()]


def saved_backbone(config: str) -> str:
    """A file of weights for the backbone of a config."""
    cfg = Config.fromfile(find_config(ROOT / config))
    backbone = {**cfg.model.backbone, 'init_cfg': None}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save(MODELS.build(backbone).state_dict(), 'backbone.pth')
    return 'backbone.pth'


def saved_van_b0(config: str) -> str:
    torch.save(VAN('b0', attention=dict(type='LKA')).state_dict(), 'van_b0.pth')
    return 'van_b0.pth'


def saved_detector(config: str) -> str:
    """A trained detector as it was before its config got a second neck."""
    cfg = Config.fromfile(find_config(ROOT / config))
    torch.save(dict(state_dict=build(cfg, neck=cfg.model.neck[0]).state_dict()), 'detector.pth')
    return 'detector.pth'


# What stands for a file of the user's, and what makes one.
FILES = {
    r'checkpoint=VAN_B0_PATH_OR_URL': saved_van_b0,
    r'checkpoint=PATH(_OR_URL)?': saved_backbone,
    r'checkpoint=van_tiny\.pth\.tar': saved_backbone,
    r'load_from=PATH': saved_detector,
}


def with_files(words: tuple[str, ...]) -> list[str]:
    """The words with files of one's own in place of those that they stand for."""
    done = []
    for word in words:
        key, _, value = word.rpartition('=')
        for pattern, make in FILES.items():
            if re.fullmatch(pattern, f'{key.rpartition(".")[2]}={value}'):
                word = f'{key}={make(words[0])}'
                break
        done.append(word)
    return done


@pytest.mark.slow
@pytest.mark.parametrize('words', trainings())
def test_a_training_command_of_the_documents_trains(words, user):
    pytest.importorskip('mmdet.models')
    pytest.importorskip('mmseg.models')
    if 'dota' in words[0]:
        pytest.importorskip('mmrotate.models')
    config, *options = with_files(words)
    args = parse_here(ROOT / 'tools' / 'train.py', ROOT / config, *options)
    make_data(Config.fromfile(args.config))
    train_a_step(prepare_training(args.config, args.cfg_options, args.work_dir, args.amp))


def check_script(script: Path, words: list[str]) -> None:
    """A script of ours takes these words, and the configs among them exist."""
    for word in words:
        assert not word.startswith('configs/') or (ROOT / word).is_file(), word
    if script.name == 'test_stack.sh':
        check_stack(script, words)
    elif script.suffix == '.sh':
        check_launch(script, words)
    else:
        if script.name == 'onnx_demo.py':
            pytest.importorskip('onnxruntime')
        assert parse_here(script, *words)


def check_stack(script: Path, words: list[str]) -> None:
    """A dry run takes these words; the interpreter among them need not be on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        (name,) = [word for word in words if word.startswith('python')]
        python = Path(folder, name)
        python.write_text(f'#!/bin/sh\necho {name.removeprefix("python")}\n')
        python.chmod(0o755)
        run(script, '--dry-run', *words, cwd=folder, PATH=f'{folder}:{os.environ["PATH"]}')


def check_launch(script: Path, words: list[str]) -> None:
    """Words of a launch script: those of its own, and those that it hands on."""
    tool = script.with_name(script.name.split('_')[1].replace('.sh', '.py'))
    own = dict(dist=1, slurm=3)[script.name.split('_')[0]]
    config, number = (words[0], words[1]) if own == 1 else (words[2], '1')
    assert number.isdigit()
    assert parse_here(tool, config)


def check_python(words: list[str]) -> None:
    if words[0] == '-c':
        compile(words[1], 'command', 'exec')
    elif words[0] == '-m':
        assert words[1].partition('.')[0] in ('mmlska', 'benchmarks')
        assert parse_here(words[1], *words[2:])
    else:
        check_script(ROOT / words[0], words[1:])


def check_make(words: list[str]) -> None:
    """Targets and variables of the Makefile."""
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    for word in words:
        name, is_variable, _ = word.partition('=')
        pattern = rf'^{name} \?=' if is_variable else rf'^{name}:'
        assert re.search(pattern, makefile, re.MULTILINE), word


def check_pip(words: list[str]) -> None:
    """Extras of ours are those of setup.cfg."""
    parser = configparser.RawConfigParser()
    parser.read(ROOT / 'setup.cfg', encoding='utf-8')
    assert words[0] in ('install', 'uninstall', 'cache')
    for extras in re.findall(r'(?:mmlska|\.)\[([\w,]+)\]', ' '.join(words)):
        assert set(extras.split(',')) <= {*parser['options.extras_require']}, extras


def check_mim(words: list[str]) -> None:
    command, package, *rest = words
    assert command in ('train', 'test', 'install')
    for word in rest:
        assert not word.startswith('configs/') or (ROOT / word).is_file(), word
    assert package


PROGRAMS = dict(python=check_python, make=check_make, pip=check_pip, mim=check_mim)


@pytest.mark.parametrize('snippet', all_of('shell'), ids=str)
def test_a_command_of_the_documents_is_understood(snippet, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(snippet):
        while '=' in words[0]:
            words = words[1:]
        program, *rest = words
        if program in PROGRAMS:
            PROGRAMS[program](rest)
        else:
            assert program.startswith('tools/'), f'say in PROGRAMS how {program} is tried'
            check_script(ROOT / program, rest)


@pytest.mark.parametrize('snippet', all_of('yaml'), ids=str)
def test_an_ablation_of_the_documents_is_read(snippet, tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(snippet.code)
    spec = make_spec(read_settings(file))
    assert spec.base.is_file() and spec.additions and spec.places


def test_every_block_of_code_is_tried():
    """A language that no test knows would be tried by none."""
    known = {'python', 'shell', 'yaml', 'bibtex', 'text'}
    assert {s.language for path in READMES for s in snippets(path)} <= known


# Text


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
    commands = ''.join(s.code for s in snippets(readme) if s.language == 'shell')
    for name in re.findall(r'(?<![\w/$])(?:tools|demo|configs)/[\w./-]+\.(?:py|sh)', commands):
        assert (ROOT / name).is_file(), name


def test_both_languages_have_the_same_sections_and_tables():
    english, chinese = (path.read_text(encoding='utf-8') for path in TOP)
    for pattern in (r'^#+ ', r'^\|', r'^```'):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern


def test_both_languages_have_the_same_code():
    english, chinese = (
        [(s.language, re.sub(r'\s*#.*', '', s.code)) for s in snippets(path)] for path in TOP
    )
    assert english == chinese


@pytest.mark.parametrize('name', ['choosing.md'])
def test_both_languages_have_the_same_figures(name):
    """Tables that are measured stand in both languages: an update of one is an update of both."""
    english, chinese = (
        [re.findall(r'\d+(?:\.\d+)?', line) for line in text.splitlines() if line.startswith('|')]
        for text in ((ROOT / 'docs' / folder / name).read_text('utf-8') for folder in ('', 'zh-CN'))
    )
    assert english == chinese and len(english) > 30
