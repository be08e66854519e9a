"""Names and shapes that foreign classes have written themselves, and the classes where they are."""

import importlib
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / 'data/foreign_names'


def shapes(name):
    """Names and shapes of a foreign model's weights."""
    return json.loads((FOLDER / f'{name}.json').read_text())['tensors']


def weights(name):
    """Random weights under the names of a foreign model, and in its shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for key, shape in shapes(name).items()
    }


def require(name):
    """A foreign module, or a skip where it does not import."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        # torchvision beside a torch that it was not built for fails with a RuntimeError.
        pytest.skip(f'{name} does not import: {error}')
