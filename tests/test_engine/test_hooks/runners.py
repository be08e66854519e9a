"""What the tests of hooks share: parts of models, and runners that hold nothing else."""

from types import SimpleNamespace

from torch import nn


class Part(nn.Module):
    """A part of a model, or a model, with these attributes."""

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def runner_of(model, **loaders):
    """A runner with a model and data sets, and the lines that it has logged as warnings."""
    lines = []
    loaders = {f'{key}_dataloader': SimpleNamespace(dataset=d) for key, d in loaders.items()}
    logger = SimpleNamespace(warning=lines.append)
    return SimpleNamespace(model=model, logger=logger, lines=lines, cfg={}, **loaders)
