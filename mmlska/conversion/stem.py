"""Stems for images of other channels than those that the weights have learned from.

'repeat' is what timm does with more channels (``adapt_input_conv`` in timm/models/_manipulate.py,
timm 1.0.31), and 'sum' what it does with one; written from that description.
"""

from collections.abc import Mapping

import torch

from mmlska.checkpoint import CheckpointError
from mmlska.checkpoint.recognition import shape_of

STEM_KEY = 'patch_embed1.projection.weight'
STEM_OPTIONS = ('sum', 'mean', 'repeat', 'zero')


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
    weights: Mapping[str, torch.Tensor], in_channels: int, how: str, key: str = STEM_KEY
) -> dict[str, torch.Tensor]:
    r"""Make the first convolution for images of other channels.

    With :math:`W_c` the kernels of the old :math:`C` channels and :math:`C'` new ones:

    - 'sum', for grey images: :math:`W'_1 = \sum_c W_c`. A grey image gives the maps that it gave
      as one of :math:`C` equal channels.
    - 'mean', for bands of which none is one of the old channels:
      :math:`W'_i = \frac{1}{C'} \sum_c W_c`. An image of equal channels gives the maps that it
      gave before.
    - 'repeat', for bands too: :math:`W'_i = \frac{C}{C'} W_{i \bmod C}`. Where :math:`C'` is a
      multiple of :math:`C`, the old channels over and over give the maps that they gave before.
    - 'zero', for RGB and more: :math:`W'_i = W_i`, and 0 for :math:`i > C`. The further channels
      change nothing until they are trained.

    Args:
        weights (Mapping): Weights of a backbone.
        in_channels (int): Channels of the new images.
        how (str): One of :data:`STEM_OPTIONS`.
        key (str): Name of the convolution's weight. Defaults to that of VAN.

    Returns:
        dict[str, Tensor]: The weight of the stem by its name; nothing if the channels stay.

    Raises:
        CheckpointError: If the stem is no convolution, or there is no such stem of the way.
    """
    weight = weights[key]
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4 or not weight.shape[1]:
        raise CheckpointError(f'{key} of shape {shape_of(weight)} is no convolution')
    given = weight.shape[1]
    if given == in_channels:
        return {}
    _check_count(how, given, in_channels)
    if how == 'zero':
        new = weight.new_zeros(len(weight), in_channels - given, *weight.shape[2:])
        return {key: torch.cat([weight, new], dim=1)}
    exact = weight.double()
    if how == 'repeat':
        turns = torch.arange(in_channels, device=weight.device) % given
        return {key: (exact[:, turns] * (given / in_channels)).to(weight.dtype)}
    share = exact.sum(1, keepdim=True) / in_channels
    return {key: share.to(weight.dtype).repeat(1, in_channels, 1, 1)}


def _check_count(how: str, given: int, in_channels: int) -> None:
    if how == 'sum' and in_channels > 1:
        raise CheckpointError(
            f"convert=dict(in_channels='sum') makes a stem for one channel, but the model has "
            f"{in_channels}: use 'mean', 'repeat' or 'zero'"
        )
    if how in ('repeat', 'zero') and given > in_channels:
        raise CheckpointError(
            f'convert=dict(in_channels={how!r}) would cut {given} channels to {in_channels}: use '
            "'mean'"
        )
