"""What to do with a model that the demo has trained: commands that run as they are printed."""

import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def next_commands(
    config: Path, checkpoint: Path, images: Path, work_dir: Path
) -> dict[str, list[str]]:
    """Words of three commands by what they are for, to be typed in this folder.

    Args:
        config: Config of the trained model.
        checkpoint: Its weights.
        images: Folder of images that it has not seen.
        work_dir: Where the results go.
    """
    model = [str(config), near(checkpoint)]
    pictures, evaluation, longer = (
        str(work_dir / name) for name in ('pictures', 'evaluation', 'longer')
    )
    return {
        'draw what it finds in images, folders or videos': [
            *script('demo/image_demo.py'),
            *(str(images), *model, '--out-dir', pictures),
        ],
        'evaluate it, with every figure': [
            *script('tools/test.py'),
            *(*model, '--work-dir', evaluation),
        ],
        'train on from here; your own data go into that config, see docs/own_data.md': [
            *script('tools/train.py'),
            *(str(config), '--work-dir', longer, '--cfg-options', f'load_from={model[1]}'),
        ],
    }


def script(name: str) -> list[str]:
    """This interpreter and a script of the repository, as one types them in this folder."""
    is_first = shutil.which('python') == sys.executable
    return ['python' if is_first else near(sys.executable), os.path.relpath(REPOSITORY / name)]


def near(path: str | Path) -> str:
    """A path from this folder where it lies below it, else as it is."""
    path, folder = Path(path), Path.cwd()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
