"""Frameworks, tried where they are installed: `tools/misc/test_bridges.sh` makes such a place."""

import importlib

import pytest

SMALL = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2])


def require(name):
    """A framework, or a skip where it is absent."""
    if importlib.util.find_spec(name) is None:
        reason = f'{name} is not installed; tools/misc/test_bridges.sh installs it'
        pytest.skip(reason, allow_module_level=True)
    importlib.import_module('torchvision_operators')
    return importlib.import_module(name)
