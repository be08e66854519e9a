import functools
import gc
import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mmlska.ops import dispatch

# A shell starts background jobs with Ctrl-C ignored, and whatever they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What was measured on this machine changes no test.
os.environ['MMLSKA_TUNED'] = 'off'
# Without a GPU the kernels in Triton are interpreted. It decides that when it is first imported.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

# What is there takes away from the process that imports it what Windows lacks.
collect_ignore = ['windows']

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / 'tests' / 'data' / 'golden'


# What a machine with PyTorch, Triton, NumPy and pytest alone lacks; the operations need none of it.
OPTIONAL = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'hypothesis', 'safetensors', 'cv2')


class ModuleOfTests(pytest.Module):
    """A file of tests; skipped by name where it imports an optional library that is absent."""

    def collect(self) -> Iterable:
        """The tests of the file."""
        try:
            return super().collect()
        except self.CollectError as error:
            missing = re.search(r"No module named '(\w+)", str(error))
            if missing and missing[1] in OPTIONAL and find_spec(missing[1]) is None:
                pytest.skip(f'needs {missing[1]}')
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Collect every file of tests as above."""
    return ModuleOfTests.from_parent(parent, path=module_path)


def pytest_collection_finish() -> None:
    """What was imported stays: spare collections of garbage, as timing asks for, to go over it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the libraries find what they leave at the end."""
    gc.unfreeze()


@pytest.fixture(scope='session')
def shared() -> Path:
    """Folder of reference data that lies beside the repository."""
    folder = Path(os.environ.get('MMLSKA_SHARED', REPOSITORY.parent / 'shared')).resolve()
    if not folder.is_dir():
        pytest.skip(f'no reference data: {folder} is absent (set MMLSKA_SHARED to its place)')
    return folder


@pytest.fixture(autouse=True)
def fresh_choices() -> None:
    """What an earlier test let the machine be decides nothing."""
    dispatch.forget_plans()


@pytest.fixture(scope='session')
def golden(request) -> Callable:
    """What the official code computes, by name; see tests/data/golden/README.md.

    ``golden('c_counts.json')`` is the content of a table. ``golden('d_eca/eca_c64')`` is a pair:
    the weights by their official names, and the other tensors, ``input`` and what comes of it.
    What is not in the repository is read from the folder ``shared``.
    """

    def read(name: str):
        file = name if name.endswith('.json') else f'{name}.safetensors'
        path = GOLDEN / file
        if not path.is_file():
            path = request.getfixturevalue('shared') / 'golden' / file
        if path.suffix == '.json':
            return json.loads(path.read_text())
        tensors = pytest.importorskip('safetensors.torch').load_file(path)
        weights = {k[6:]: v for k, v in tensors.items() if k.startswith('state.')}
        return weights, {k: v for k, v in tensors.items() if not k.startswith('state.')}

    return read


@pytest.fixture(scope='session', autouse=True)
def quick_configs() -> Iterator[None]:
    """Spare mmengine what takes longer than most tests and changes no setting.

    That is the layout of each config that it prints, and reading all metafiles of a library anew
    for each of its configs.
    """
    if find_spec('mmengine') is None:
        yield
        return
    from mmengine.config import utils

    with (
        patch('yapf.yapflib.yapf_api.FormatCode', lambda code, **_: (code, True)),
        patch.object(utils, 'load', functools.cache(utils.load)),
    ):
        yield


@pytest.fixture(scope='session')
def scenes(tmp_path_factory) -> Path:
    """A few digit scenes, in a folder of that name below `data`, where configs look for it."""
    pytest.importorskip('skimage')
    pytest.importorskip('sklearn')
    from mmlska.datasets import make_digit_scenes

    root = tmp_path_factory.mktemp('user') / 'data' / 'digit_scenes'
    return make_digit_scenes(root, num_train=8, num_val=3)


@pytest.fixture(scope='session', autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Spare Triton's interpreter to patch its language anew for each function that a kernel calls.

    That is half of its time. The launch of the kernel patches it, and the first call of a function
    of each other module, such as Triton's own.
    """
    if not is_interpreting():
        yield
        return
    from triton.runtime import interpreter

    patch_language, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched_for = set()

    def launch_anew(*args, **kwargs):
        patched_for.clear()
        return launch(*args, **kwargs)

    def patch_once(function):
        if function.__module__ in patched_for:
            return None
        patched_for.add(function.__module__)
        return patch_language(function)

    with (
        patch.object(interpreter, '_patch_lang', patch_once),
        patch.object(interpreter.GridExecutor, '__call__', launch_anew),
    ):
        yield


def is_interpreting() -> bool:
    """Whether kernels are interpreted by a Triton that can be told how, from its version 3 on."""
    names = ('triton', 'triton.runtime.interpreter')
    return not torch.cuda.is_available() and all(map(find_spec, names))


@pytest.fixture
def rounding_of_a_gpu(monkeypatch):
    """Triton's interpreter cuts off what bfloat16 does not hold; a GPU rounds to nearest."""
    if not is_interpreting():
        return
    import triton
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(values, source, target, mode):
        if target != triton.language.bfloat16:
            return convert(values, source, target, mode)
        return torch.from_numpy(values).bfloat16().view(torch.int16).numpy()

    monkeypatch.setattr(interpreter, '_convert_float', convert_float)
