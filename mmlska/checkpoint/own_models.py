"""Weights that come with this package, by name: ``mmlska://NAME``.

They are small models of the study (docs/study.md), in half precision, each with a card that tells
on what it was trained, with which figure, under which licence.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from .downloads import check_sha256
from .files import CheckpointError, find_file

SCHEME = 'mmlska://'
FOLDER = Path(__file__).resolve().parents[1] / 'model_zoo'
INDEX = 'index.json'


@dataclass(frozen=True)
class OwnModel:
    """A model whose weights come with this package.

    Attributes:
        name: Its name after ``mmlska://``.
        file: Its file in the folder of the zoo.
        sha256: Hash of the file.
        config: Name of the shipped config that it is of.
        options: Overrides of that config, by dotted key.
        dataset_meta: Classes and their colours, as mmengine keeps them in a checkpoint.
    """

    name: str
    file: str
    sha256: str
    config: str
    options: dict
    dataset_meta: dict


@cache
def own_models(folder: Path = FOLDER) -> dict[str, OwnModel]:
    """All models of the zoo by name; none where the zoo is empty."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    entries = json.loads(index.read_text(encoding='utf-8'))
    return {name: OwnModel(name, **entry) for name, entry in entries.items()}


def find_own_model(address: str, folder: Path = FOLDER) -> Path:
    """File of a model of the zoo.

    Args:
        address: ``mmlska://NAME``.
        folder: Folder of the zoo. Defaults to that of the package.

    Raises:
        CheckpointError: If there is no model of that name, or its file is damaged.
    """
    name = address.removeprefix(SCHEME)
    models = own_models(folder)
    if name not in models:
        close = get_close_matches(name, models, n=1)
        meant = f'; did you mean {SCHEME}{close[0]}?' if close else ''
        known = ', '.join(sorted(models)) or 'no model'
        raise CheckpointError(f'{address}: mmlska comes with {known}, not with {name!r}{meant}')
    path = find_file(folder / models[name].file)
    check_sha256(path, models[name].sha256)
    return path
