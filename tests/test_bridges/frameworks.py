"""Frameworks, tried where they are installed: `tools/misc/test_bridges.sh` makes such a place."""

import importlib
import sys
import types

import pytest
import torch

SMALL = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2])


def name_operators_of_torchvision():
    """Let torchvision import beside a PyTorch that its operators were not built for.

    A wheel with CUDA does not load its operators beside a PyTorch without. Nothing here calls
    them, but its import wants their names.
    """
    sys.modules['torchvision._meta_registrations'] = types.ModuleType('_meta_registrations')
    library = torch.library.Library('torchvision', 'DEF')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    return library


def require(name):
    """A framework, or a skip where it is absent."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(
            f'{name} is not installed; tools/misc/test_bridges.sh installs it',
            allow_module_level=True,
        )
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError):
        sys.modules.pop('torchvision', None)
        require.kept = name_operators_of_torchvision()
    return importlib.import_module(name)
