"""The arrows of the house: who may import whom. Read from the sources, nothing is imported."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Every room and the rooms that it may import. A room names only rooms that stand above it here, so
# that no circle fits in.
ARROWS = {
    'registry': '',
    'shipped': '',
    'cli': '',
    'data': '',
    'datasets': 'registry shipped',
    'model_zoo': '',
    'ops': '',
    'layers': 'registry ops',
    'checkpoint': 'layers ops',
    'patches': 'shipped checkpoint',
    'evaluation': 'registry patches',
    'models': 'registry patches ops layers checkpoint',
    '__init__': 'models',
    'conversion': 'registry ops layers checkpoint models',
    'deploy': 'ops layers checkpoint models',
    'bridges': 'layers checkpoint models',
    'engine': '__init__ data registry shipped patches ops layers checkpoint models conversion '
    'deploy',
    'analysis': 'registry shipped data datasets ops layers checkpoint models conversion deploy '
    'engine',
    'environment': 'registry shipped patches ops',
    '__main__': '__init__ shipped cli environment analysis bridges',
    'benchmarks': 'registry shipped cli datasets evaluation ops layers checkpoint models '
    'conversion deploy analysis engine',
    'tools': 'data shipped cli datasets evaluation checkpoint conversion deploy analysis engine',
    'demo': 'registry cli datasets checkpoint deploy analysis engine',
}
# What a room may import besides the standard library, at module level and in functions; a room that
# is not named here is free, but for those that nobody imports at module level.
LIBRARIES = {
    '__init__': '',
    'registry': 'mmengine',
    'shipped': '',
    'cli': 'mmengine',
    'ops': 'torch triton',
    'layers': 'torch',
    'checkpoint': 'torch numpy safetensors mmengine filelock',
    'models': 'torch mmengine mmcv',
    'environment': 'torch mmengine mmcv',
}
# Rooms that import others of ours in functions alone.
LIGHT = {'__init__'}
ONLY_IN_FUNCTIONS = {
    *('mmdet', 'mmseg', 'mmpretrain'),
    *('timm', 'transformers', 'segmentation_models_pytorch', 'ultralytics'),
}


class Import(NamedTuple):
    """A dotted name that a file imports, and whether it does so in a function."""

    file: str
    name: str
    in_function: bool


def imports_of(file: str, source: str) -> Iterator[Import]:
    """All imports of a file; `from package import name` counts as `package.name`."""
    package = Path(file).with_suffix('').parts[:-1]
    stack = [(node, False) for node in ast.parse(source).body]
    while stack:
        node, inside = stack.pop()
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = '.'.join([*base, *([node.module] if node.module else [])])
            yield from (Import(file, f'{start}.{alias.name}', inside) for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack += [(child, inside) for child in ast.iter_child_nodes(node)]


@cache
def sources() -> dict[str, str]:
    folders = ('mmlska', 'tools', 'benchmarks', 'demo')
    files = sorted(file for folder in folders for file in (REPOSITORY / folder).rglob('*.py'))
    # Where a package is built, copies of configs and tools lie in it.
    files = [file for file in files if '.mim' not in file.parts]
    return {file.relative_to(REPOSITORY).as_posix(): file.read_text('utf-8') for file in files}


def room_of(name: str) -> str | None:
    """Room of a dotted name of ours, None for one of somebody else."""
    first, _, rest = name.partition('.')
    if first != 'mmlska':
        return first if first in ('tools', 'benchmarks', 'demo') else None
    room = rest.partition('.')[0]
    is_room = room and (
        any(file.startswith(f'mmlska/{room}/') for file in sources())
        or f'mmlska/{room}.py' in sources()
    )
    return room if is_room else '__init__'


def room_of_file(file: str) -> str:
    return room_of(file.removesuffix('.py').replace('/', '.'))


def arrows_against_the_rules(found: Iterator[Import]) -> set[str]:
    """Every import that the tables do not allow, as `file -> room or library`."""
    wrong = set()
    for file, name, in_function in found:
        room, target = room_of_file(file), room_of(name)
        library = name.partition('.')[0]
        if target is not None:
            named = target in ARROWS[room].split()
            allowed = target == room or (named and (in_function or room not in LIGHT))
        elif library in sys.stdlib_module_names:
            allowed = True
        else:
            named = room not in LIBRARIES or library in LIBRARIES[room].split()
            allowed = named and (in_function or library not in ONLY_IN_FUNCTIONS)
        if not allowed:
            wrong.add(f'{file} -> {target or library}')
    return wrong


def module_of(name: str) -> str | None:
    """File that a dotted name stands for: the module itself, or the one that holds the name."""
    parts = name.split('.')
    for end in (len(parts), len(parts) - 1):
        stem = '/'.join(parts[:end])
        for file in (f'{stem}.py', f'{stem}/__init__.py'):
            if file in sources():
                return file
    return None


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or nothing."""
    finished: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for other in sorted(graph.get(node, ())):
            if found := walk(other, [*path, node]):
                return found
        finished.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def all_imports() -> Iterator[Import]:
    for file, source in sources().items():
        yield from imports_of(file, source)


def test_every_room_has_its_arrows():
    rooms = {room_of_file(file) for file in sources()}
    assert rooms == set(ARROWS), 'a room was added or removed: say in ARROWS what it may import'


def test_the_arrows_point_one_way():
    rooms = list(ARROWS)
    for place, (room, allowed) in enumerate(ARROWS.items()):
        assert set(allowed.split()) <= set(rooms[:place]), f'{room} imports a room below it'


def test_the_imports_follow_the_arrows():
    assert arrows_against_the_rules(all_imports()) == set(), 'not allowed by ARROWS or LIBRARIES'


def test_modules_import_each_other_in_no_circle():
    """Not inside a room either, and an import inside a function hides none."""
    graph: dict[str, set[str]] = {file: set() for file in sources()}
    for file, name, _ in all_imports():
        target = module_of(name)
        if target not in (None, file):
            graph[file].add(target)
    assert not circle(graph)


def test_every_module_says_what_it_is():
    silent = [
        file for file, source in sources().items() if not ast.get_docstring(ast.parse(source))
    ]
    assert silent == [], 'a module docstring is missing'


@pytest.mark.parametrize(
    ('file', 'source', 'wrong'),
    [
        ('mmlska/ops/new.py', 'from mmlska.layers import LSKA', 'layers'),
        ('mmlska/ops/new.py', 'def f():\n    from ..layers import LSKA', 'layers'),
        ('mmlska/ops/new.py', 'import numpy as np', 'numpy'),
        ('mmlska/layers/new.py', 'from mmlska.models.recompute import recompute', 'models'),
        ('mmlska/layers/new.py', 'try:\n    import mmcv\nexcept ImportError:\n    pass', 'mmcv'),
        ('mmlska/checkpoint/new.py', 'import mmlska.models', 'models'),
        ('mmlska/models/new.py', 'class A:\n    from mmlska import conversion', 'conversion'),
        ('mmlska/engine/new.py', 'from mmdet.structures import DetDataSample', 'mmdet'),
        ('mmlska/engine/hooks/new.py', 'from ...analysis import complexity', 'analysis'),
        ('mmlska/registry.py', 'import torch', 'torch'),
        ('mmlska/__init__.py', 'from .models import VAN', 'models'),
        ('demo/new.py', 'from tools import train', 'tools'),
    ],
)
def test_a_wrong_import_is_found(file, source, wrong):
    assert arrows_against_the_rules(imports_of(file, source)) == {f'{file} -> {wrong}'}


@pytest.mark.parametrize(
    ('file', 'source'),
    [
        (
            'mmlska/ops/new.py',
            'import math\nimport torch.nn.functional as F\nfrom . import residual',
        ),
        ('mmlska/layers/new.py', 'from mmlska.registry import MODELS\nfrom mmlska.ops import x'),
        ('mmlska/engine/new.py', 'def f():\n    from mmdet.structures import DetDataSample'),
        ('mmlska/models/backbones/new.py', 'from ...layers.build import build_layer'),
        ('mmlska/__main__.py', 'from mmlska import __version__'),
    ],
)
def test_a_right_import_passes(file, source):
    assert arrows_against_the_rules(imports_of(file, source)) == set()


def test_a_circle_is_found():
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


def test_no_two_files_of_tests_bear_one_name():
    """Pytest imports them by their names alone."""
    names = [path.name for path in (REPOSITORY / 'tests').rglob('*.py')]
    assert {name for name in names if names.count(name) > 1} <= {'conftest.py'}
