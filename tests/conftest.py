import os
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
