"""Changes to foreign libraries; and mmcv's operators, which no map of ours may make wrong."""

import logging
from pathlib import Path

import mmengine.logging
import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmlska import patches
from mmlska.models import VAN, ContainerLight, GhostNetV2

ARCH = dict(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2])


def test_every_change_has_a_library_and_a_reason():
    for patch in patches.PATCHES:
        assert patch.library in ('mmengine', 'mmdet') and patch.changed
        assert len(patch.reason.split()) > 10 and 'Args:' not in patch.reason


def test_the_architecture_page_lists_them():
    page = (Path(__file__).parents[1] / 'docs/architecture.md').read_text('utf-8')
    for patch in patches.PATCHES:
        row = f'| `{patch.make.__name__}` | {patch.library} | {patch.changed} |'
        assert row in page.splitlines()


def test_the_permanent_changes_are_made_with_the_models_and_made_once():
    schemes = dict(CheckpointLoader._schemes)
    assert schemes['http://'].__module__.startswith('mmlska.checkpoint')
    patches.apply()
    assert dict(CheckpointLoader._schemes) == schemes


def test_a_debug_message_for_no_logger_is_not_printed(capsys):
    mmengine.logging.print_log('OneDL is absent', level=logging.DEBUG)
    mmengine.logging.print_log('a message')
    assert capsys.readouterr().out == 'a message\n'


@pytest.mark.parametrize(
    'build',
    [VAN, lambda arch: GhostNetV2(0.2), lambda arch: ContainerLight(dict(arch, num_heads=2))],
)
@pytest.mark.parametrize('size', [64, 160])
def test_the_maps_that_leave_a_backbone_are_contiguous(build, size):
    backbone = build(ARCH).eval()
    image = torch.rand(1, 3, size, size)
    for layout in (torch.contiguous_format, torch.channels_last):
        outs = backbone.to(memory_format=layout)(image.contiguous(memory_format=layout))
        assert all(out.is_contiguous() for out in outs)
