"""Stems for images of other channels than those that the weights have learned from."""

from collections.abc import Mapping

import torch

from mmlska.checkpoint import CheckpointError
from mmlska.checkpoint.recognition import shape_of

STEM_KEY = 'patch_embed1.projection.weight'
STEM_OPTIONS = ('mean', 'zero')


def check_stem_option(how: str) -> None:
    """Refuse an unknown way to make a stem.

    Raises:
        ValueError: If it is none. The message names what is allowed.
    """
    if how not in STEM_OPTIONS:
        raise ValueError(
            f'in_channels={how!r} in convert is unknown: allowed are {", ".join(STEM_OPTIONS)}'
        )


def convert_stem(
    weights: Mapping[str, torch.Tensor], in_channels: int, how: str
) -> dict[str, torch.Tensor]:
    """Make the first convolution for images of other channels.

    'mean' gives every channel the same share of the sum over the old ones, so that an image whose
    channels are all equal gives the maps that it gave before: the choice for grey images, and for
    bands of which none is red, green or blue. 'zero' keeps the old channels, in their order, and
    starts those after them at zero, so that they change nothing until they are trained: the choice
    for RGB and more.

    Args:
        weights (Mapping): Weights of a VAN under our names.
        in_channels (int): Channels of the new images.
        how (str): 'mean' or 'zero'.

    Returns:
        dict[str, Tensor]: The weight of the stem by its name; nothing if the channels stay.

    Raises:
        CheckpointError: If the stem is no convolution, or 'zero' would cut channels off.
    """
    weight = weights[STEM_KEY]
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4 or not weight.shape[1]:
        raise CheckpointError(f'{STEM_KEY} of shape {shape_of(weight)} is no convolution')
    given = weight.shape[1]
    if given == in_channels:
        return {}
    if how == 'mean':
        share = weight.double().sum(1, keepdim=True) / in_channels
        return {STEM_KEY: share.to(weight.dtype).repeat(1, in_channels, 1, 1)}
    if given > in_channels:
        raise CheckpointError(
            f"convert=dict(in_channels='zero') would cut {given} channels to {in_channels}: use "
            "'mean'"
        )
    new = weight.new_zeros(len(weight), in_channels - given, *weight.shape[2:])
    return {STEM_KEY: torch.cat([weight, new], dim=1)}
