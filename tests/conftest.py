import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared() -> Path:
    """Folder of reference data that lies beside the repository."""
    folder = Path(os.environ.get('MMLSKA_SHARED', REPOSITORY.parent / 'shared')).resolve()
    if not folder.is_dir():
        pytest.skip(f'no reference data: {folder} is absent (set MMLSKA_SHARED to its place)')
    return folder
