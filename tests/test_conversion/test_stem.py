"""Stems for images of other channels: what each way keeps."""

import sys
from pathlib import Path

import pytest
import torch

from mmlska.checkpoint import CheckpointError
from mmlska.conversion.stem import STEM_KEY, convert_stem
from mmlska.models import VAN

sys.path.append(str(Path(__file__).parents[1] / 'test_checkpoint'))
import foreign

ARCH = dict(embed_dims=[4], depths=[1], ffn_ratios=[1])


def van(in_channels, kind='LSKA', **options):
    attention = dict(type=kind, kernel_size=7)
    return VAN(ARCH, attention, in_channels, out_indices=0, **options).eval()


def started(in_channels, how, folder, kind='LSKA', **convert):
    """A model of RGB images, and one for others that starts from it."""
    source = van(3)
    torch.save(source.state_dict(), folder / 'rgb.pth')
    convert = dict(in_channels=how, **convert)
    init_cfg = dict(type='Pretrained', checkpoint=str(folder / 'rgb.pth'), convert=convert)
    target = van(in_channels, kind, init_cfg=init_cfg)
    target.init_weights()
    return source, target


@pytest.mark.parametrize('in_channels', [1, 2, 3, 4, 13])
@torch.no_grad()
def test_mean_gives_an_image_of_equal_channels_its_old_maps(in_channels, tmp_path):
    source, target = (m.double() for m in started(in_channels, 'mean', tmp_path))
    grey = torch.rand(1, 1, 32, 32).double()
    old = source(grey.expand(1, 3, 32, 32))[0]
    assert torch.allclose(target(grey.expand(1, in_channels, 32, 32))[0], old, atol=1e-5)


@torch.no_grad()
def test_sum_gives_a_grey_image_the_maps_of_its_triple(tmp_path):
    source, target = started(1, 'sum', tmp_path)
    grey = torch.rand(1, 1, 32, 32)
    assert torch.allclose(target(grey)[0], source(grey.expand(1, 3, 32, 32))[0], atol=1e-5)


@pytest.mark.parametrize('in_channels', [3, 6, 12])
@torch.no_grad()
def test_repeat_gives_colours_over_and_over_their_old_maps(in_channels, tmp_path):
    source, target = started(in_channels, 'repeat', tmp_path)
    image = torch.rand(1, 3, 32, 32)
    maps = target(image.repeat(1, in_channels // 3, 1, 1))[0]
    assert torch.allclose(maps, source(image)[0], atol=1e-5)


@pytest.mark.parametrize('in_channels', [4, 5, 13])
def test_repeat_takes_the_kernels_in_turn_and_keeps_their_scale(in_channels):
    weight = torch.randn(2, 3, 5, 5)
    new = convert_stem({STEM_KEY: weight}, in_channels, 'repeat')[STEM_KEY]
    for i in range(in_channels):
        torch.testing.assert_close(new[:, i], weight[:, i % 3] * 3 / in_channels)
    # Where the colours have one kernel, an image of equal channels gives what it gave.
    alike = weight[:, :1].expand(2, 3, 5, 5)
    new = convert_stem({STEM_KEY: alike}, in_channels, 'repeat')[STEM_KEY]
    torch.testing.assert_close(new.sum(1), alike.sum(1))


@pytest.mark.parametrize(('in_channels', 'how'), [(1, 'sum'), (4, 'repeat'), (7, 'repeat')])
def test_sum_and_repeat_are_what_timm_does(in_channels, how):
    manipulate = foreign.require('timm.models._manipulate')
    weight = torch.randn(2, 3, 5, 5)
    theirs = manipulate.adapt_input_conv(in_channels, weight)
    ours = convert_stem({STEM_KEY: weight}, in_channels, how)[STEM_KEY]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('in_channels', [3, 4, 13])
@torch.no_grad()
def test_zero_leaves_the_old_channels_as_they_were(in_channels, tmp_path):
    source, target = started(in_channels, 'zero', tmp_path)
    image = torch.rand(1, in_channels, 32, 32)
    assert torch.allclose(target(image)[0], source(image[:, :3])[0], atol=1e-6)


def test_stem_and_attention_are_converted_together(tmp_path):
    source, target = started(4, 'zero', tmp_path, kind='LKA', attention='LKA')
    assert torch.equal(target.state_dict()[STEM_KEY][:, :3], source.state_dict()[STEM_KEY])


@pytest.mark.parametrize('how', ['zero', 'repeat'])
def test_no_channels_are_cut_off(how, tmp_path):
    with pytest.raises(CheckpointError, match="would cut 3 channels to 1: use 'mean'"):
        started(1, how, tmp_path)


def test_sum_is_for_one_channel(tmp_path):
    with pytest.raises(CheckpointError, match="for one channel, but the model has 4: use 'mean'"):
        started(4, 'sum', tmp_path)


def test_an_unknown_way_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"='copy'.*allowed are sum, mean, repeat, zero"):
        started(4, 'copy', tmp_path)


def test_a_stem_that_is_no_convolution_is_named():
    with pytest.raises(CheckpointError, match=r'of shape \(3,\) is no convolution'):
        convert_stem({STEM_KEY: torch.ones(3)}, 4, 'mean')


def test_without_the_option_the_message_offers_it():
    with pytest.raises(CheckpointError, match='images of 3 channels') as caught:
        van(4).load_state_dict(van(3).state_dict())
    assert "convert=dict(in_channels='mean')" in str(caught.value)
    assert 'in_channels=3' in str(caught.value)
