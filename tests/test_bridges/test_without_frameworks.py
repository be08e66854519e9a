"""What the bridges say where no framework is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_command_line_tells_how_to_install_ultralytics():
    if importlib.util.find_spec('ultralytics') is not None:
        pytest.skip('ultralytics is installed')
    from mmlska.__main__ import main

    with pytest.raises(SystemExit, match=r'pip install ultralytics\. It is under AGPL-3\.0'):
        main(['yolo', 'detect', 'train', 'model=mine.yaml'])


@pytest.mark.slow
def test_the_bridges_import_without_their_frameworks():
    # Libraries beneath may import some of them by themselves.
    code = (
        'import sys, mmlska.models\n'
        'before = set(sys.modules)\n'
        'import mmlska.bridges.timm, mmlska.bridges.transformers, mmlska.bridges.ultralytics\n'
        'import mmlska.bridges.segmentation_models_pytorch\n'
        'names = {"timm", "transformers", "ultralytics", "segmentation_models_pytorch"}\n'
        'print(sorted(names & (set(sys.modules) - before)))'
    )
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == '[]'


@pytest.mark.parametrize(
    'words', [[], ['--help'], ['detect', 'train', 'model=mine.yaml', '--verbose', 'epochs=1']]
)
def test_the_command_line_passes_every_word_on(words):
    from mmlska.__main__ import parse_args

    assert parse_args(['yolo', *words]).arguments == words
