"""Frameworks, tried where they are installed: `tools/misc/test_bridges.sh` makes such a place."""

import importlib
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / 'docs' / 'bridges.md'

SMALL = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2])


def require(name):
    """A framework, or a skip where it is absent."""
    if importlib.util.find_spec(name) is None:
        reason = f'{name} is not installed; tools/misc/test_bridges.sh installs it'
        pytest.skip(reason, allow_module_level=True)
    importlib.import_module('torchvision_operators')
    return importlib.import_module(name)


def losses_of_two_steps(model, compute_loss, rate=0.01):
    """The losses before two steps of SGD."""
    optimizer, losses = torch.optim.SGD(model.parameters(), rate), []
    for _ in range(2):
        loss = compute_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def run_snippet(words):
    """Run the one snippet of the documents that imports this, and return its names."""
    code = re.findall(r'^```text\n(.*?)^```', PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [snippet for snippet in code if f'import {words}' in snippet]
    names = {}
    exec(compile(found, str(PAGE), 'exec'), names)
    return names
