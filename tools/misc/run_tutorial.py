#!/usr/bin/env python
"""Run demo/tutorial.ipynb in a copy of the repository, and keep what its cells put out."""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

REPOSITORY = Path(__file__).resolve().parents[2]
TUTORIAL = REPOSITORY / 'demo' / 'tutorial.ipynb'
# What the cells of the notebook use of the repository.
FOLDERS = ('configs', 'demo', 'mmlska', 'tools')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=TUTORIAL,
        metavar='FILE',
        help='where the notebook with its outputs goes (default: in place)',
    )
    return parser.parse_args()


def copy_repository(target: Path) -> None:
    """Copy what the notebook uses, without what was made here."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns('__pycache__', '.mim', '.ipynb_checkpoints')
        shutil.copytree(REPOSITORY / folder, target / folder, ignore=ignored)


def execute(copy: Path) -> 'NotebookNode':
    """Run the notebook of a copy of the repository, with the package of that copy.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(copy / 'demo' / TUTORIAL.name, as_version=4)
    NotebookClient(
        notebook,
        kernel_name='python3',
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources=dict(metadata=dict(path=copy / 'demo')),
    ).execute(env={**os.environ, 'PYTHONPATH': str(copy)})
    # The kernel writes its version here, which is none of a reader's business.
    notebook.metadata.language_info = dict(name='python', file_extension='.py')
    notebook.metadata.executed_code = code_hash(notebook)
    return notebook


def code_hash(notebook: 'NotebookNode') -> str:
    """A hash of the code of all cells, which tells whether outputs are of this code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == 'code']
    return hashlib.sha256('\0'.join(code).encode()).hexdigest()


def main() -> None:
    """Run and write."""
    args = parse_args()
    try:
        import nbformat
    except ImportError as error:
        raise SystemExit(f"{error}; pip install '.[dev]' brings it") from error
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        notebook = execute(Path(folder))
    nbformat.write(notebook, args.out)
    print(f'{args.out}: all cells ran', file=sys.stderr)


if __name__ == '__main__':
    main()
