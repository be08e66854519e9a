import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Without a GPU the kernels in Triton are interpreted. It decides that when it is first imported.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared() -> Path:
    """Folder of reference data that lies beside the repository."""
    folder = Path(os.environ.get('MMLSKA_SHARED', REPOSITORY.parent / 'shared')).resolve()
    if not folder.is_dir():
        pytest.skip(f'no reference data: {folder} is absent (set MMLSKA_SHARED to its place)')
    return folder


@pytest.fixture
def rounding_of_a_gpu(monkeypatch):
    """Triton's interpreter cuts off what bfloat16 does not hold; a GPU rounds to nearest."""
    if torch.cuda.is_available() or find_spec('triton') is None:
        return
    import triton
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(values, source, target, mode):
        if target != triton.language.bfloat16:
            return convert(values, source, target, mode)
        return torch.from_numpy(values).bfloat16().view(torch.int16).numpy()

    monkeypatch.setattr(interpreter, '_convert_float', convert_float)
